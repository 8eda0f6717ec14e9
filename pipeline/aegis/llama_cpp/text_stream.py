"""Turn a stream of byte pieces into a stream of text that a person can be shown as it comes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence


def joined(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode UTF-8 across pieces: a character whose bytes come in several tokens comes out whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def until_stop(texts: Iterable[str], stops: Sequence[str]) -> Iterator[str]:
    """Pass the text on up to the first of `stops`, which may lie across several of the texts.

    What could be the beginning of a stop is held back until it is known not to be.
    """
    wanted = [stop for stop in stops if stop]
    held = ""
    for text in texts:
        held += text
        found = [position for stop in wanted if (position := held.find(stop)) >= 0]
        if found:
            if min(found):
                yield held[: min(found)]
            return
        safe = len(held) - _longest_beginning(held, wanted)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


def _longest_beginning(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters of `text` could be the start of a stop."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
