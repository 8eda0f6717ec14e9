"""The questions of held-out chats: what a model can be asked that its training did not show it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from aegis.data.chat import Encoder, Example
from aegis.data.formats import records
from aegis.data.packing import Windows, cut
from aegis.data.records import Chat, Record
from aegis.data.rejects import Rejects
from aegis.data.sources import Source

_BATCH_ROWS = 256
_MOST_ROWS = 100_000
"""Rows looked at: the held-out ones are spread evenly, and a few are wanted."""


def heldout_questions(
    source: Source, encoder: Encoder, heldout: Windows, count: int, columns: Sequence[str] = ()
) -> list[str]:
    """The first user turns of the first held-out chats, each question once.

    What was held out is known by its tokens, so the rows are encoded again until enough have been recognised.

    Args:
        heldout: windows of the same source, encoder and length.
        count: how many at most.
        columns: the user's names for keys, as the data was prepared with.
    """
    known = {piece.tobytes() for piece in heldout.pieces()}
    found: dict[str, None] = {}
    for record, example in _encoded(source, encoder, columns):
        if len(found) == count:
            break
        pieces = cut(example, heldout.max_length).pieces
        if isinstance(record, Chat) and pieces and pieces[0].ids.tobytes() in known:
            asked = next((message["content"] for message in record.messages if message["role"] == "user"), None)
            if asked and asked.strip():
                found[asked] = None
    return list(found)


def _encoded(source: Source, encoder: Encoder, columns: Sequence[str]) -> Iterator[tuple[Record, Example]]:
    """Each row with its tokens; those that cannot be used were reported when the data was prepared."""
    silent = Rejects(source.name)
    rows = itertools.islice(records(source, silent, columns), _MOST_ROWS)
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        examples = encoder.encode(batch, silent)
        if len(examples) == len(batch):
            yield from zip(batch, examples, strict=True)
            continue
        for record in batch:
            yield from ((record, example) for example in encoder.encode([record], silent))
