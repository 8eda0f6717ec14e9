"""Finds the trained tokens of an encoded text from the positions of a few tokens.

A tokenizer returns the positions of all tokens as a list of tuples, which takes longer than encoding the text.
Positions never decrease along a text, so bisection finds where something begins.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from aegis.errors import DataError


class Turn(NamedTuple):
    """One turn of the assistant in a rendered chat, in characters; it ends between `content_end` and `limit`."""

    start: int
    content_end: int
    limit: int


def first_reaching(encoding: Any, character: int) -> int:
    """Return the first token that ends after `character`, or begins there or later; the number of tokens if none does.

    A token with the prompt's last space and the completion's first word is trained.
    """

    def reaches(token: int) -> bool:
        start, end = encoding.token_to_chars(token)
        return start >= character or end > character

    return bisect_left(range(len(encoding)), True, key=reaches)


def tokens_of(turns: Iterable[Turn], encoding: Any, enders: list[int]) -> Iterator[slice]:
    """Yield the tokens of each turn, up to and with the token that ends it.

    Args:
        turns: in the order of the text.
        enders: the tokens that may end a turn, in the order of the text.

    Raises:
        DataError: no such token ends a turn.
    """
    for turn in turns:
        # A token that begins before the turn belongs to the prompt: `<|assistant|>` includes the spaces after it
        first = bisect_left(range(len(encoding)), turn.start, key=lambda token: encoding.token_to_chars(token)[0])
        last = _ender(turn, encoding, enders[bisect_left(enders, first) :])
        if last is None:
            raise DataError("chat.template_without_end")
        yield slice(first, last + 1)


def _ender(turn: Turn, encoding: Any, enders: list[int]) -> int | None:
    for token in enders:
        start, end = encoding.token_to_chars(token)
        if start >= turn.limit:
            break
        if end > turn.content_end:
            return token
    return None
