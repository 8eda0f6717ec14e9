"""Tests of a folder's kind of vocabulary, and of the name for which llama.cpp loads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.model.vocabulary import name_for_llama_cpp, vocabulary_of


def test_a_folders_files_show_its_kind_of_vocabulary(tmp_path: Path) -> None:
    assert vocabulary_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "byte_fallback": true}}', encoding="utf-8")
    assert vocabulary_of(tmp_path) == "SentencePiece"
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.model").touch()
    assert vocabulary_of(tmp_path) == "SentencePiece"
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}]}}, indent=1),
        encoding="utf-8",
    )
    assert vocabulary_of(tmp_path) == "byte-level BPE"


BYTE_LEVEL = {"pre_tokenizer": {"type": "ByteLevel"}, "added_tokens": [{"content": "<|end|>", "rstrip": True}]}
SENTENCEPIECE = {"model": {"byte_fallback": True}, "added_tokens": [{"content": "</s>", "rstrip": True}]}
OF_PHI_3 = {"model": {"byte_fallback": True}, "added_tokens": [{"content": "<|user|>", "rstrip": True}]}


@pytest.mark.parametrize(
    ("name", "model_type", "tokenizer", "expected"),
    [
        ("tiny", "phi3", SENTENCEPIECE, "Phi-3-tiny"),
        ("My PHI3", "phi3", SENTENCEPIECE, "My PHI3"),
        ("tiny", "phi3", None, "Phi-3-tiny"),
        ("Phi-4-mini", "phi3", BYTE_LEVEL, "Phi-4-mini"),
        ("phi-3-small", "phi3", BYTE_LEVEL, "phi_3-small"),
        ("Llama-Phi3-distill", "llama", BYTE_LEVEL, "Llama-Phi_3-distill"),
        ("tiny", "llama", SENTENCEPIECE, "tiny"),
        ("tiny", "mistral", OF_PHI_3, "Phi-3-tiny"),
        ("tiny", "llama", None, "tiny"),
    ],
)
def test_the_name_follows_the_vocabulary(
    tmp_path: Path, name: str, model_type: str, tokenizer: object, expected: str
) -> None:
    if tokenizer:
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert name_for_llama_cpp(name, model_type, tmp_path) == expected


def test_a_tokenizer_that_is_nested_too_deeply_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[" * 100_000, encoding="utf-8")
    assert name_for_llama_cpp("tiny", "llama", tmp_path) == "tiny"
