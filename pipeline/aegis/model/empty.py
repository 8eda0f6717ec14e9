"""A base without its weights: transformers builds it from config.json alone, or the key that is to blame is named."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aegis.errors import IntegrityError
from aegis.messages import phrase

_SECONDS = 20.0
"""Time for finding the key that is to blame; a model of 48 layers is built in a third of a second."""


def load_config(folder: Path) -> Any:
    """config.json as transformers understands it.

    Raises:
        IntegrityError: transformers cannot make sense of it.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers checks some fields, and raises whatever the others lead to
        raise _refused(folder, error) from error


def empty_model(folder: Path, **options: Any) -> Any:
    """The …ForCausalLM of a folder on the meta device; only config.json is read.

    Args:
        options: for `from_config`, such as `dtype`.

    Raises:
        IntegrityError: transformers cannot build it, with the keys that keep it from that, if they can be known.
    """
    config = load_config(folder)
    try:
        return _built(config, **options)
    except Exception as error:  # a model's constructor can raise anything
        raise _refused(folder, error) from error


def _built(config: Any, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **options)


def _refused(folder: Path, error: Exception) -> IntegrityError:
    keys = _keys_to_blame(folder)
    blame = phrase("base.blamed", keys=", ".join(keys)) if keys else ""
    text = " ".join(str(error).split()).rstrip(".;") or type(error).__name__  # a first line may end with a colon
    return IntegrityError("base.unreadable_config", path=folder / "config.json", error=text, blame=blame)


def _keys_to_blame(folder: Path) -> list[str]:
    """The keys of config.json without any one of which the model can be built, with their values."""
    from transformers import PretrainedConfig
    from transformers.utils import logging

    try:
        values = PretrainedConfig.get_config_dict(folder, local_files_only=True)[0]
    except Exception:  # not even JSON: the error itself says so
        return []
    end, level = time.monotonic() + _SECONDS, logging.get_verbosity()
    logging.set_verbosity_error()  # each trial would warn of the same once more
    try:
        return [
            f"{key} = {value!r}"
            for key, value in values.items()
            if key != "model_type" and time.monotonic() < end and _builds_without(key, values)
        ]
    finally:
        logging.set_verbosity(level)


def _builds_without(key: str, values: Mapping[str, Any]) -> bool:
    from transformers import AutoConfig

    try:
        _built(AutoConfig.for_model(**{name: value for name, value in values.items() if name != key}))
    except Exception:  # this key alone is not to blame
        return False
    return True
