"""Finds the questions of held-out chats, which the training has not seen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from aegis.data.chat import Encoder
from aegis.data.example import Example
from aegis.data.formats import records
from aegis.data.packing import Windows, cut
from aegis.data.records import Chat, Record
from aegis.data.rejects import Rejects
from aegis.data.sources import Source

_BATCH_ROWS = 256
_MAX_ROWS = 100_000
"""Maximum number of rows to read: held-out rows are spread evenly, and only a few are needed."""


def heldout_questions(
    source: Source, encoder: Encoder, heldout: Windows, count: int, columns: Sequence[str] = ()
) -> list[str]:
    """Return the first user turns of the first held-out chats, each question once.

    Held-out rows are recognised by their tokens, so rows are encoded again until enough are found.

    Args:
        heldout: windows of the same source, encoder and length.
        count: maximum number of questions.
        columns: the user's names for keys, as in `prepare`.
    """
    known = {piece.tobytes() for piece in heldout.pieces()}
    found: dict[str, None] = {}
    for record, example in _encoded(source, encoder, columns):
        if len(found) == count:
            break
        pieces = cut(example, heldout.max_length).pieces
        if isinstance(record, Chat) and pieces and pieces[0].ids.tobytes() in known:
            question = next((message["content"] for message in record.messages if message["role"] == "user"), None)
            if question and question.strip():
                found[question] = None
    return list(found)


def _encoded(source: Source, encoder: Encoder, columns: Sequence[str]) -> Iterator[tuple[Record, Example]]:
    """Yield each row with its tokens; unusable rows were reported when the data was prepared."""
    silent = Rejects(source.name)
    rows = itertools.islice(records(source, silent, columns), _MAX_ROWS)
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        examples = encoder.encode(batch, silent)
        if len(examples) == len(batch):
            yield from zip(batch, examples, strict=True)
            continue
        for record in batch:
            yield from ((record, example) for example in encoder.encode([record], silent))
