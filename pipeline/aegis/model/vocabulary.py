"""Which kind of vocabulary a base has: llama.cpp treats the two kinds by different rules, whatever the model's type."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

Vocabulary = Literal["SentencePiece", "byte-level BPE"]

_BYTE_LEVEL = re.compile(rb'"type"\s*:\s*"ByteLevel"')
_BYTE_FALLBACK = re.compile(rb'"byte_fallback"\s*:\s*true|"type"\s*:\s*"Unigram"')
_PHI3 = re.compile(r"(phi)-?(3)", re.IGNORECASE)


def vocabulary_of(folder: Path) -> Vocabulary | None:
    """The kind of tokenizer a model folder has, by its files; None if they do not tell."""
    described = folder / "tokenizer.json"
    if described.is_file():
        content = described.read_bytes()
        if _BYTE_LEVEL.search(content):
            return "byte-level BPE"
        if _BYTE_FALLBACK.search(content):
            return "SentencePiece"
    if (folder / "tokenizer.model").is_file():
        return "SentencePiece"
    return "byte-level BPE" if (folder / "merges.txt").is_file() else None


def name_for_llama_cpp(name: str, model_type: str, vocabulary: Vocabulary | None) -> str:
    """The name with what llama.cpp reads off it: for a vocabulary of Phi-3's kind "phi-3", for any other no such word.

    With "phi-3" or "phi3" in general.name, llama.cpp lets role tags take in the white space behind them, and looks
    <s>, </s> and <unk> up in the vocabulary (src/llama-vocab.cpp at the pinned commit). A Phi-3 without it gets more
    tokens in every chat prompt; a byte-level vocabulary with it, such as Phi-4-mini's, cannot be loaded.
    """
    if vocabulary == "byte-level BPE":
        return _PHI3.sub(r"\1_\2", name)
    return name if model_type != "phi3" or _PHI3.search(name) else f"Phi-3-{name}"
