"""Turn a stream of byte pieces into a stream of text that a person can be shown as it comes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator


def joined(pieces: Iterable[bytes]) -> Iterator[str]:
    """Decode UTF-8 across pieces: a character whose bytes come in several tokens comes out whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text
