"""Tests that a tokenizer may lengthen a text as known ones do, and no further."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from aegis.errors import UnsupportedModelError
from aegis.limits import TEXT_GROWTH, TOKEN_CHARACTERS
from aegis.model.base import load_tokenizer
from aegis.model.tokenizer_growth import refuse_growth


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def table(longest: int) -> dict[str, Any]:
    content = (8).to_bytes(4, "little") + bytes(8) + b"a\0" + b"b" * longest + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


HONEST: list[dict[str, Any]] = [
    {"normalizer": None, "decoder": None},
    {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, replace({"String": " "}, "▁"),
    ]}},
    # ALBERT's: quotes, NFKD, lower case, SentencePiece's table
    {"normalizer": {"type": "Sequence", "normalizers": [
        replace({"String": "``"}, '"'), {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"}, table(54),
    ]}},
    # XLM-RoBERTa's
    {"normalizer": {"type": "Sequence", "normalizers": [table(54), replace({"Regex": " {2,}"}, "▁")]},
     "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}},
    {"decoder": {"type": "Sequence", "decoders": [replace({"String": "▁"}, " "), {"type": "ByteFallback"}]}},
]  # fmt: skip

HOSTILE: list[dict[str, Any]] = [
    {"normalizer": replace({"String": "a"}, "b" * 2**20)},
    {"normalizer": replace({"Regex": ""}, "b" * TEXT_GROWTH)},
    {"normalizer": replace({"String": "ab"}, "b" * 3 * TEXT_GROWTH)},
    {"normalizer": {"type": "Sequence", "normalizers": [replace({"String": "a"}, "aa")] * 20}},
    {"normalizer": {"pattern": {"String": "a"}, "content": "b" * 2**20}},
    {"normalizer": {"type": "Prepend", "prepend": "b" * 2**20}},
    {"normalizer": table(2**20)},
    {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [replace({"String": "a"}, "b" * 2**20)]}},
    {"decoder": {"type": "Sequence", "decoders": [replace({"String": "a"}, "b" * 2**20)]}},
]


def write(folder: Path, changes: dict[str, Any]) -> None:
    (folder / "tokenizer.json").write_text(json.dumps(changes), encoding="utf-8")


@pytest.mark.parametrize("changes", HONEST)
def test_the_normalizers_of_known_tokenizers_are_accepted(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, changes)
    refuse_growth(tmp_path)


@pytest.mark.parametrize("changes", HOSTILE)
def test_a_tokenizer_that_lengthens_a_text_more_than_known_ones_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    write(tmp_path, changes)
    with pytest.raises(UnsupportedModelError) as refused:
        refuse_growth(tmp_path)
    assert refused.value.key == "base.tokenizer_growth"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"vocab": {"a" * (TOKEN_CHARACTERS + 1): 0}}},
        {"model": {"vocab": [["a" * (TOKEN_CHARACTERS + 1), 0.0]]}},
        {"added_tokens": [{"content": "a" * (TOKEN_CHARACTERS + 1)}]},
    ],
)
def test_a_token_longer_than_any_known_one_is_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, changes)
    with pytest.raises(UnsupportedModelError) as refused:
        refuse_growth(tmp_path)
    assert refused.value.key == "base.long_token"


@pytest.mark.parametrize(
    "text", ["", "[", "[" * 10_000, "null", "[]", '{"normalizer": 3, "model": [], "added_tokens": {}}']
)
def test_an_unreadable_tokenizer_is_left_to_the_library(text: str, tmp_path: Path) -> None:
    refuse_growth(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
    refuse_growth(tmp_path)


def test_a_base_is_refused_before_its_tokenizer_is_loaded(quick_base: Path, tmp_path: Path) -> None:
    """The control: unchanged, it is loaded."""
    folder = tmp_path / "base"
    shutil.copytree(quick_base, folder)
    load_tokenizer(folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | HOSTILE[3]), encoding="utf-8")
    with pytest.raises(UnsupportedModelError) as refused:
        load_tokenizer(folder)
    assert refused.value.key == "base.tokenizer_growth"
