"""How a text that a base writes begins, and what ends it: at the user's turn of its template, or as a document."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aegis.data.chat import RENDER_BYTES, RENDER_SECONDS
from aegis.data.deadline import within
from aegis.llama_cpp import with_begin_token

_QUESTION = "AEGIS7question"
"""Stands where the user's text would; no template has it."""


@dataclass(frozen=True)
class Opening:
    """How a text begins.

    Attributes:
        ids: what every text begins with.
        follow: what the template puts between question and answer; empty for a document.
    """

    ids: tuple[int, ...]
    follow: tuple[int, ...] = ()


def openings(tokenizer: Any) -> list[Opening]:
    """A document's, and before it a chat's if the tokenizer has a template that can be followed."""
    chat = _chat_opening(tokenizer)
    return [*([] if chat is None else [chat]), document_opening(tokenizer)]


def document_opening(tokenizer: Any) -> Opening:
    """The token that begins a text, or, where there is none, the one that ends the text before."""
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return Opening((int(start or 0),))


def _chat_opening(tokenizer: Any) -> Opening | None:
    if not tokenizer.chat_template:
        return None

    def render() -> str:
        asked = [{"role": "user", "content": _QUESTION}]
        return str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))

    try:
        text = within(RENDER_SECONDS, render, memory_bytes=RENDER_BYTES)
    except Exception:  # a template is a program: it can raise anything; documents remain
        return None
    before, found, after = text.partition(_QUESTION)
    if not found:
        return None
    ids = with_begin_token(tokenizer, tokenizer(before, add_special_tokens=False).input_ids)
    follow = tokenizer(after, add_special_tokens=False).input_ids
    return Opening(tuple(ids), tuple(follow)) if ids and follow else None


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn or a text, by the base's own files."""
    found: set[int] = set()
    for listed in (
        getattr(model.generation_config, "eos_token_id", None),
        model.config.get_text_config().eos_token_id,
        tokenizer.eos_token_id,
    ):
        found.update([listed] if isinstance(listed, int) else listed or [])
    return frozenset(found)
