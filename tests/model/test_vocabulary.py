"""What kind of vocabulary a folder has, and which name llama.cpp loads it under."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.model.vocabulary import name_for_llama_cpp, vocabulary_of


def test_a_folder_tells_its_vocabulary(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("name", "model_type", "vocabulary", "expected"),
    [
        ("tiny", "phi3", "SentencePiece", "Phi-3-tiny"),
        ("My PHI3", "phi3", "SentencePiece", "My PHI3"),
        ("tiny", "phi3", None, "Phi-3-tiny"),
        ("Phi-4-mini", "phi3", "byte-level BPE", "Phi-4-mini"),
        ("phi-3-small", "phi3", "byte-level BPE", "phi_3-small"),
        ("Llama-Phi3-distill", "llama", "byte-level BPE", "Llama-Phi_3-distill"),
        ("tiny", "llama", "SentencePiece", "tiny"),
    ],
)
def test_the_name_follows_the_vocabulary(name: str, model_type: str, vocabulary: object, expected: str) -> None:
    assert name_for_llama_cpp(name, model_type, vocabulary) == expected  # type: ignore[arg-type]
