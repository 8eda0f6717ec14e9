"""Removes the space with which a SentencePiece word begins from the start of a chat's answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def without_first_space(pieces: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the pieces of a chat's answer, or the complete one, without white space before the first word."""
    has_text = False
    for piece in pieces:
        for choice in piece["choices"]:
            message = choice.get("delta") or choice.get("message") or {}
            if not has_text and message.get("content"):
                message["content"] = message["content"].lstrip()
                has_text = bool(message["content"])
        yield piece
