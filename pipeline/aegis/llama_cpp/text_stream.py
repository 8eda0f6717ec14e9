"""Decodes a stream of byte pieces to a stream of text."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator


def joined(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode UTF-8 across pieces: a character whose bytes are in several tokens is yielded as one piece."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
