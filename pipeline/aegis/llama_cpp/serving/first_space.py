"""Answers without the space that a SentencePiece word brings along, where a chat's answer begins with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def without_first_space(pieces: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The pieces of a chat's answer, or the one whole answer, without white space before its first word."""
    begun = False
    for piece in pieces:
        for choice in piece["choices"]:
            said = choice.get("delta") or choice.get("message") or {}
            if not begun and said.get("content"):
                said["content"] = said["content"].lstrip()
                begun = bool(said["content"])
        yield piece
