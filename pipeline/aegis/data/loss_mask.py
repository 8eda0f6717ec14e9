"""Which tokens of an encoded text are learnt, by asking for the places of a few.

A tokenizer hands out the places of all tokens as a list of tuples, which takes Python longer than the encoding took.
Places never fall along a text, so where something begins is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from aegis.errors import DataError


class Turn(NamedTuple):
    """One assistant's turn in a rendered chat, in characters: the turn ends between `content_end` and `limit`."""

    start: int
    content_end: int
    limit: int


def first_reaching(encoding: Any, character: int) -> int:
    """The first token that ends behind `character`, or begins there or later; how many there are if none does.

    A token that holds the prompt's last space and the completion's first word is learnt.
    """

    def reaches(token: int) -> bool:
        start, end = encoding.token_to_chars(token)
        return start >= character or end > character

    return bisect_left(range(len(encoding)), True, key=reaches)


def tokens_of(turns: Iterable[Turn], encoding: Any, enders: list[int]) -> Iterator[slice]:
    """The tokens of each turn, the one that ends it the last.

    Args:
        turns: in the order of the text.
        enders: the tokens that may end a turn, in that order too.

    Raises:
        DataError: none of them ends one of the turns.
    """
    for turn in turns:
        # A token that begins before the turn belongs to the prompt: `<|assistant|>` swallows spaces after it
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
