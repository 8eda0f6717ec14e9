"""Tests that an error is completely in the user's language: what happened, its reasons, and the fix."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import aegis
from aegis import errors, llama_cpp
from aegis.config.resolve import resolve
from aegis.config.study_settings import StudyConfig
from aegis.config.toml_values import as_toml
from aegis.config.train_settings import TrainConfig
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import AegisError
from aegis.llama_cpp.convert import refuse_code
from aegis.messages import LANGUAGES, VARIABLE
from aegis.model.families import check_family
from aegis.runs.manifest import Manifest, read_manifest, verify_directory
from aegis.runs.publish import publishing
from aegis.verification.study.text_split import StudyText
from tests.screen_texts import english_in

Make = Callable[[Path], object]


def rows(name: str, content: bytes) -> Make:
    """Read a file of invalid rows."""

    def read(folder: Path) -> None:
        path = folder / name
        path.write_bytes(content)
        source, rejects = open_source(path), Rejects(name)
        list(source.rows(rejects))
        rejects.check()

    return read


def published(folder: Path) -> Path:
    with publishing(folder / "out", Manifest("train", {}, {}, {})) as staging:
        for name in ("a", "b", "c"):
            (staging.path / name).write_bytes(b"whole")
    return folder / "out"


def damaged(folder: Path) -> None:
    out = published(folder)
    (out / "a").unlink()
    (out / "b").write_bytes(b"longer than it was")
    (out / "c").write_bytes(b"other")
    verify_directory(out)


def of_another_version(folder: Path) -> None:
    path = published(folder) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "version": 99}), encoding="utf-8")
    read_manifest(folder / "out")


def code(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"auto_map": {}}', encoding="utf-8")
    refuse_code(folder)


def empty_gguf(folder: Path) -> None:
    (folder / "empty.gguf").write_bytes(b"")
    llama_cpp.GgufFile(folder / "empty.gguf")


NO_ROWS: Any = SimpleNamespace(pieces=lambda: iter(()))

TROUBLES: dict[str, Make] = {
    "a line too long": rows("a.jsonl", b'{"text": "' + b"a" * (9 << 20) + b'"}\n'),
    "a line that is not UTF-8": rows("a.jsonl", b'{"text": "\xe3\x81\x82"}\n{"text": "\xff"}\n'),
    "a document without a blank line": rows("a.txt", (b"a" * (1 << 20) + b"\n") * 9),
    "more fields than names": rows("a.csv", b"text\none,two\n"),
    "files that changed": damaged,
    "a manifest of another version": of_another_version,
    "code beside a model": code,
    "an empty GGUF": empty_gguf,
    "no converter": lambda folder: llama_cpp.find_converter(folder),
    "a model that names nothing": lambda _: check_family({}),
    "a quantized model": lambda _: check_family({"architectures": ["A"], "quantization_config": True}),
    "too little data": lambda _: StudyText.of_rows(NO_ROWS, None, None, 64, 256, 64),
    **{
        f"{key} = {value!r}": lambda _, key=key, value=value: resolve(TrainConfig, flags={key: value})
        for key, value in {
            "max_steps": 0,
            "batch_size": "many",
            "logging_steps": 1.5,
            "learning_rate": -1,
            "lora_dropout": 2,
            "soul_learning_rate": "fast",
            "rotation": "cubic",
            "compile": True,
        }.items()
    },
    "alpha that jumps": lambda _: resolve(TrainConfig, flags={"annealing_steps": 0, "warmup_steps": 0}),
    "a recorded sharded base": lambda _: resolve(TrainConfig, flags={"shard_base": True, "cuda_graphs": "on"}),
    "no quantization": lambda _: resolve(StudyConfig, flags={"quant": ""}),
    "an unknown variant": lambda _: resolve(StudyConfig, flags={"variants": "plain,best"}),
}


@pytest.mark.parametrize("make", TROUBLES.values(), ids=TROUBLES.keys())
def test_an_error_is_in_one_language(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control is the English one, in which English is found; paths and what was given are left out of both."""
    texts = {}
    for spoken in LANGUAGES:
        monkeypatch.setenv(VARIABLE, spoken)
        folder = tmp_path / spoken
        folder.mkdir()
        with pytest.raises(AegisError) as caught:
            make(folder)
        texts[spoken] = str(caught.value).replace(str(folder), "")
    assert english_in(texts["en"]), texts["en"]
    assert english_in(texts["ja"]) == [], texts["ja"]


def test_an_invalid_value_is_described_by_the_catalogue() -> None:
    """Key, value and what it must be; the control is pydantic's own sentence, which is written for programmers."""
    from pydantic import ValidationError

    for key, value, shown in (
        ("max_steps", 0, "must be at least 1"),
        ("batch_size", "many", "must be a whole number"),
        ("logging_steps", 1.5, "must be a whole number"),
        ("rotation", "cubic", "must be 'so8', 'so16', 'so32', 'so64', 'so96', 'so128', 'so192', 'so256' or 'dense'"),
    ):
        with pytest.raises(ValidationError) as theirs:
            TrainConfig.model_validate({key: value})
        with pytest.raises(AegisError) as ours:
            resolve(TrainConfig, flags={key: value})
        assert str(ours.value) == f"train: {key} = {as_toml(value)}: {shown}"
        assert "Input should be" in theirs.value.errors()[0]["msg"]


ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, AegisError)}
SPEAKING = {"phrase", "bilingual", "RowError", "DamagedGguf", "add", "append", "tell", "check"}
"""What takes a reason, beside the errors."""


def sentences_given(source: str) -> list[str]:
    """Return literals of two English words that are passed to functions that show text."""
    found = []
    for call in ast.walk(ast.parse(source)):
        name = getattr(call.func, "id", getattr(call.func, "attr", "")) if isinstance(call, ast.Call) else ""
        if isinstance(call, ast.Call) and (name in SPEAKING or name in ERRORS):
            given = (node for part in [*call.args, *call.keywords] for node in ast.walk(part))
            literals = (str(node.value) for node in given if isinstance(node, ast.Constant))
            found += [text for text in literals if re.search("[a-z]{2,} [a-z]{2,}", text)]
    return found


def test_every_reason_comes_from_the_catalogue() -> None:
    assert sentences_given('rejects.add(where, f"a line of {size} bytes is long")') == ["a line of ", " bytes is long"]
    apart = {"report", "doctor", "demo"}  # English cards, commands to type, and a corpus
    left = {
        path.name: found
        for path in Path(aegis.__file__).parent.rglob("*.py")
        if not apart & set(path.parts) and (found := sentences_given(path.read_text(encoding="utf-8")))
    }
    assert left == {}
