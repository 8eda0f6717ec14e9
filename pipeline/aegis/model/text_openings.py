"""Defines how a text that a base writes begins (as the user's turn of a chat, or as a document), and what ends it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.data.chat import token_ids
from aegis.errors import DataError
from aegis.llama_cpp import chat_text, with_begin_token

_QUESTION = "AEGIS7question"
"""A placeholder for the user's text; no template contains it."""


@dataclass(frozen=True)
class Opening:
    """How a text begins.

    Attributes:
        ids: the tokens that every text begins with.
        follow: the template's tokens between question and answer; empty for a document.
    """

    ids: tuple[int, ...]
    follow: tuple[int, ...] = ()


def openings(tokenizer: Any) -> list[Opening]:
    """Return the opening of a document, after that of a chat if the tokenizer has a usable template."""
    chat = _chat_opening(tokenizer)
    return [*([] if chat is None else [chat]), document_opening(tokenizer)]


def document_opening(tokenizer: Any) -> Opening:
    """The token that begins a text, or, where there is none, the one that ends the text before."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Opening((int(start or 0),))


def _chat_opening(tokenizer: Any) -> Opening | None:
    if not tokenizer.chat_template:
        return None

    try:
        text = chat_text(tokenizer, [{"role": "user", "content": _QUESTION}], prompt=True)
    except DataError:  # the base then writes documents only
        return None
    before, found, after = text.partition(_QUESTION)
    if not found:
        return None
    ids = with_begin_token(tokenizer, token_ids(tokenizer, before, special=False))
    follow = token_ids(tokenizer, after, special=False)
    return Opening(tuple(ids), tuple(follow)) if ids and follow else None


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a turn or a text, according to the base's own files."""
    found: set[int] = set()
    for listed in (
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ):
        found.update([listed] if isinstance(listed, int) else listed or [])
    return frozenset(found)
