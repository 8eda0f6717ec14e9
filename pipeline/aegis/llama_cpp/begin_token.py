"""The begin-of-text token: whether a tokenizer adds one by itself, which is what the converter writes into the GGUF."""

from __future__ import annotations

from typing import Any


def adds_begin_token(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer puts its begin-of-text token before a text."""
    begin = tokenizer.bos_token_id
    return begin is not None and tokenizer("a").input_ids[:1] == [begin]


def with_begin_token(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids of a rendered chat, with the begin-of-text token where the tokenizer adds it and the template did not."""
    if adds_begin_token(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
        return [tokenizer.bos_token_id, *ids]
    return ids
