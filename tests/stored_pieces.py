"""Examples as the pieces that are packed."""

from __future__ import annotations

from collections.abc import Iterable

from aegis.data.example import Example
from aegis.data.packing import Pieces


def stored(examples: Iterable[Example]) -> Pieces:
    pieces = Pieces()
    for example in examples:
        pieces.append(example)
    return pieces
