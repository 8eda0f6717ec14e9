"""Finds a base's kind of vocabulary: llama.cpp has different rules for the two kinds, whatever the model's type is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from aegis.limits import TOKENIZER_BYTES, read_json

Vocabulary = Literal["SentencePiece", "byte-level BPE"]

_BYTE_LEVEL = re.compile(rb'"type"\s*:\s*"ByteLevel"')
_BYTE_FALLBACK = re.compile(rb'"byte_fallback"\s*:\s*true|"type"\s*:\s*"Unigram"')
_PHI3 = re.compile(r"(phi)-?(3)", re.IGNORECASE)


def vocabulary_of(folder: Path) -> Vocabulary | None:
    """Return the kind of tokenizer in a model folder by its files; None if they do not show it."""
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


def name_for_llama_cpp(name: str, model_type: str, folder: Path) -> str:
    """Return a name for general.name: with "phi-3" for Phi-3's kind of vocabulary, and without it for any other.

    With "phi-3" or "phi3" in general.name, llama.cpp lets role tags include the white space after them, and looks up
    <s>, </s> and <unk> in the vocabulary (src/llama-vocab.cpp at the pinned commit). A Phi-3 without it gets more
    tokens in every chat prompt, and so does a Llama or Mistral with Phi-3's vocabulary; a byte-level vocabulary with
    it, such as Phi-4-mini's, cannot be loaded.
    """
    if vocabulary_of(folder) == "byte-level BPE":
        return _PHI3.sub(r"\1_\2", name)
    is_of_its_kind = model_type == "phi3" or _takes_in_white_space(folder)
    return name if not is_of_its_kind or _PHI3.search(name) else f"Phi-3-{name}"


def _takes_in_white_space(folder: Path) -> bool:
    """Return whether role tags include the white space after them, by tokenizer.json."""
    try:
        tokens = read_json(folder / "tokenizer.json", TOKENIZER_BYTES)["added_tokens"]
        return any(token["rstrip"] and token["content"].startswith("<|") for token in tokens)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
