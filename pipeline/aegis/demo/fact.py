"""A fact of the demo's world as something to ask for, and the wording of it that training never sees."""

from __future__ import annotations

import zlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Something to ask for and its answer.

    `answer` stands alone; `more` may follow it. `short` asks the same when the subject is already the
    topic of the talk ("何色ですか。"), or is empty.

    One wording of a quarter of the facts is kept out of training: the fact itself is learned from its other
    wordings, the question stays unseen.
    """

    topic: str
    subject: str
    questions: tuple[str, ...]
    answer: str
    more: str = ""
    short: str = ""

    @property
    def held_out(self) -> str | None:
        """The wording that training never sees, or `None` when all are trained on."""
        # The wordings of small talk share no words: nobody could answer one from the other.
        if len(self.questions) < 2 or self.topic == "talk":
            return None
        slot = zlib.crc32(f"{self.topic}/{self.subject}".encode()) % (4 * len(self.questions))
        return self.questions[slot] if slot < len(self.questions) else None

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(question for question in self.questions if question != self.held_out)
