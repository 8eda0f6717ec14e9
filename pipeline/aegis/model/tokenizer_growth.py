"""Bounds how much longer a tokenizer.json may make a text, before transformers loads it.

A normalizer that replaces a letter by a megabyte, or a chain of twenty that double it, fills the memory inside one call
of the tokenizers library, wherever a text is tokenized. The growth of each step is computed from the file.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.errors import UnsupportedModelError
from aegis.limits import TEXT_GROWTH, TOKEN_CHARACTERS, TOKENIZER_BYTES, read_json

_UNICODE = {"NFKC": 18, "NFKD": 18, "NFC": 3, "NFD": 4, "Lowercase": 3, "BertNormalizer": 3, "ByteLevel": 4}
"""Maximum characters per character of these steps (https://unicode.org/faq/normalization.html; ByteLevel: per byte)."""


def refuse_growth(folder: Path) -> None:
    """Refuse a tokenizer.json that lengthens a text more, or has longer tokens, than every known one.

    A file that cannot be read is left to transformers, which reports the reason.

    Raises:
        UnsupportedModelError: the tokenizer exceeds a bound.
    """
    try:
        document = read_json(folder / "tokenizer.json", TOKENIZER_BYTES)
    except (OSError, ValueError):
        return
    if not isinstance(document, dict):
        return
    written = _growth([document.get("normalizer"), document.get("pre_tokenizer")])
    growth = max(written, _growth(document.get("decoder")))
    if growth > TEXT_GROWTH:
        raise UnsupportedModelError("base.tokenizer_growth", folder=folder, growth=growth, most=TEXT_GROWTH)
    longest = max(map(len, _tokens(document)), default=0)
    if longest > TOKEN_CHARACTERS:
        raise UnsupportedModelError("base.long_token", folder=folder, characters=longest, most=TOKEN_CHARACTERS)


def _growth(node: Any) -> float:
    """Return the maximum factor by which a step and its inner steps lengthen a text.

    It depends on the step's fields and not on its type, because the library accepts some steps without a type.
    """
    if isinstance(node, list):
        return _product(_growth(inner) for inner in node)
    if not isinstance(node, dict):
        return 1.0
    own = _UNICODE.get(str(node.get("type")), 1) * _replacement(node.get("pattern"), node.get("content"))
    own *= 1 + len(str(node.get("prepend") or "")) + len(str(node.get("replacement") or ""))
    if isinstance(table := node.get("precompiled_charsmap"), str):
        own *= max(1, _longest_entry(table))
    return own * _product(_growth(inner) for inner in node.values())


def _replacement(pattern: Any, content: Any) -> float:
    if not isinstance(content, str):
        return 1.0
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    # a regular expression may match the empty text between every two characters
    return max(1.0, len(content) / len(replaced)) if isinstance(replaced, str) and replaced else 1.0 + len(content)


def _longest_entry(table: str) -> int:
    """Return the longest replacement of SentencePiece's table: a trie's size, the trie, then zero-terminated ones."""
    try:
        content = base64.b64decode(table)
    except ValueError:
        return 1
    return max(map(len, content[4 + int.from_bytes(content[:4], "little") :].split(b"\0")), default=1)


def _product(factors: Iterator[float]) -> float:
    found = 1.0
    for factor in factors:
        found = min(found * factor, 1e30)
    return found


def _tokens(document: dict[str, Any]) -> Iterator[str]:
    model = document.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    for entry in vocabulary if isinstance(vocabulary, list | dict) else ():
        token = entry[0] if isinstance(entry, list) and entry else entry
        if isinstance(token, str):
            yield token
    added = document.get("added_tokens")
    for entry in added if isinstance(added, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("content"), str):
            yield entry["content"]
