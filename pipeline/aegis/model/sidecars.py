"""Writes the files beside the weights of a model folder: the base's config, tokenizer and licences, but no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from aegis.errors import IntegrityError
from aegis.limits import TOKENIZER_BYTES, read_json
from aegis.model.base import TEMPLATE, TOKENIZER_FILES, Base
from aegis.model.provenance import copy_licences


def write_sidecars(base: Base, folder: Path, dtype: str) -> None:
    """Write the base's config, tokenizer and licences beside merged weights of `dtype`.

    Raises:
        IntegrityError: tokenizer_config.json is not JSON.
    """
    dtype_key = "dtype" if "dtype" in base.config else "torch_dtype"
    write_config(base, folder, tie_word_embeddings=False, **{dtype_key: dtype})
    copy_licences(base.folder, folder)
    copy_tokenizer(base, folder)


def write_config(base: Base, folder: Path, **changes: Any) -> None:
    """Write the base's config.json with `changes`, without the keys that name code or a quantization."""
    # edit the base's own file: transformers 5 would save rope_scaling under another name, and other readers would lose
    # LongRoPE
    config: dict[str, Any] = {**base.config, **changes}
    for key in ("auto_map", "quantization_config"):
        config.pop(key, None)
    _write_json(folder / "config.json", config)


def copy_tokenizer(base: Base, folder: Path) -> None:
    """Copy the tokenizer's files and generation_config.json; a separate chat template replaces theirs.

    Raises:
        IntegrityError: tokenizer_config.json is not JSON.
    """
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, folder / name)
    # a program that allows remote code, as the converter does, would run a tokenizer class that is named here
    path = folder / "tokenizer_config.json"
    if path.is_file():
        try:
            tokenizer_config = read_json(path, TOKENIZER_BYTES)
        except ValueError as error:
            raise IntegrityError("convert.not_json", path=base.folder / path.name, error=str(error)) from None
        dropped = ("auto_map",) if base.chat_template is None else ("auto_map", "chat_template")
        if isinstance(tokenizer_config, dict) and any(name in tokenizer_config for name in dropped):
            _write_json(path, {name: value for name, value in tokenizer_config.items() if name not in dropped})
    if base.chat_template is not None:
        (folder / "chat_template.json").unlink(missing_ok=True)
        (folder / TEMPLATE).write_text(base.chat_template, encoding="utf-8", newline="\n")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
