"""Finds questions that the training has not seen: those of held-out chats, or how held-out texts begin."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from aegis.data.chat import Encoder
from aegis.data.example import Example
from aegis.data.formats import records
from aegis.data.packing import Windows, cut
from aegis.data.records import Chat, Record
from aegis.data.rejects import Rejects
from aegis.data.sources import Source

_BATCH_ROWS = 256
_OPENING, _CONTINUATION = 40, 120
"""Characters of a text: its first words, and how it goes on."""
_MAX_ROWS = 100_000
"""Maximum number of rows to read: held-out rows are spread evenly, and only a few are needed."""


@dataclass(frozen=True)
class Question:
    """What a model may be asked, and how the row goes on.

    Attributes:
        text: a chat's first question, or a text's first words.
        answer: the chat's own answer, "" if it has no text; or the text's next words.
    """

    text: str
    answer: str
    is_chat: bool = True


def heldout_questions(
    source: Source,
    encoder: Encoder,
    heldout: Windows,
    count: int,
    columns: Sequence[str] = (),
    expired: Callable[[], bool] = lambda: False,
) -> list[Question]:
    """Return the questions of the first held-out rows, each once.

    Held-out rows are recognised by their tokens, so rows are encoded again until enough are found.

    Args:
        heldout: windows of the same source, encoder and length.
        count: maximum number of questions.
        columns: the user's names for keys, as in `prepare`.
        expired: asked from time to time; if true, those found so far are returned.
    """
    known = {piece.tobytes() for piece in heldout.pieces()}
    found: dict[str, Question] = {}
    for record, example in _encoded(source, encoder, columns):
        if len(found) == count or expired():
            break
        pieces = cut(example, heldout.max_length)
        if pieces and pieces[0].ids.tobytes() in known:
            question = _of_chat(record) if isinstance(record, Chat) else _of_text(record.text)
            if question.text.strip():
                found.setdefault(question.text, question)
    return list(found.values())


def _of_chat(chat: Chat) -> Question:
    said = [(message["role"], message["content"] or "") for message in chat.messages]
    asked = list(itertools.dropwhile(lambda turn: turn[0] != "user", said))
    answer = next((text for role, text in asked if role == "assistant"), "")
    return Question(asked[0][1] if asked else "", answer)


def _of_text(text: str) -> Question:
    text = text.strip()
    end = min(_OPENING, len(text) // 2)
    # between words, where the language has spaces
    end = text.rfind(" ", end // 2, end + 1) if " " in text[end // 2 : end + 1] else end
    return Question(text[:end], text[end : end + _CONTINUATION].strip(), is_chat=False)


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
