"""The rule for the begin-of-text token: whether a tokenizer adds it, as the converter records in the GGUF."""

from __future__ import annotations

from typing import Any


def adds_begin_token(tokenizer: Any) -> bool:
    """Return whether a transformers tokenizer adds its begin-of-text token before a text."""
    begin = tokenizer.bos_token_id
    return begin is not None and tokenizer("a").input_ids[:1] == [begin]


def with_begin_token(tokenizer: Any, ids: list[int]) -> list[int]:
    """Add the begin-of-text token to a rendered chat's ids if the tokenizer adds one and the template wrote none."""
    if adds_begin_token(tokenizer) and ids[:1] != [tokenizer.bos_token_id]:
        return [tokenizer.bos_token_id, *ids]
    return ids
