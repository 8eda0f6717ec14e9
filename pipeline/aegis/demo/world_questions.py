"""The demo's world as questions and answers in either voice, made from questions.toml and the tables of world.toml."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from aegis.demo.voice import POLITE, Style, Voice, voice_of
from aegis.demo.words import Row, data, filled, selected, table

_SMALL_TALK = "talk"


@dataclass(frozen=True)
class Fact:
    """A question in several wordings, and its answer.

    `answer` stands alone; `more` may follow it. `short` asks the same when the subject is already known
    ("何色ですか。"), or is empty.

    For a quarter of the facts, one wording is kept out of training: the model learns the fact from its other
    wordings and never sees this question.
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
        if len(self.questions) < 2 or self.topic == _SMALL_TALK:
            return None
        slot = zlib.crc32(f"{self.topic}/{self.subject}".encode()) % (4 * len(self.questions))
        return self.questions[slot] if slot < len(self.questions) else None

    @property
    def trained(self) -> tuple[str, ...]:
        """The wordings that training sees."""
        return tuple(question for question in self.questions if question != self.held_out)


@cache
def all_facts(style: Style) -> tuple[Fact, ...]:
    """Every fact of the world, answered in one style, in the order of questions.toml."""
    voice = voice_of(style)
    return tuple(fact for name, patterns in data("questions").items() for fact in _facts(name, patterns, voice))


def _facts(name: str, patterns: list[dict[str, Any]], voice: Voice) -> Iterator[Fact]:
    """The facts of one table: every row with each of its patterns."""
    if name == _SMALL_TALK:
        for talk in patterns:
            yield Fact(
                name, talk["questions"][0], tuple(talk["questions"]), voice.pick(talk["polite"], talk["samurai"])
            )
        return
    answers: dict[str, str] = {}
    for pattern in patterns:
        answers.setdefault(pattern["topic"], pattern["answer"])
    for row in table(name):
        for pattern in patterns:
            if selected((row,), pattern, {}):
                yield _fact(row, pattern, answers, voice)


def _fact(row: Row, pattern: Mapping[str, Any], answers: Mapping[str, str], voice: Voice) -> Fact:
    """One pattern filled from one row; `answers` holds the table's answer pattern per topic."""
    more = answers[pattern["then"]] if "then" in pattern else pattern.get("more", "")
    return Fact(
        topic=pattern["topic"],
        subject=filled(pattern.get("subject", "{name}"), row, POLITE),
        questions=tuple(filled(question, row, POLITE) for question in pattern["questions"]),
        answer=filled(pattern["answer"], row, voice),
        more=filled(more, row, voice),
        short=filled(pattern.get("short", ""), row, POLITE),
    )
