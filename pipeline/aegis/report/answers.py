"""The answers of models, for a report."""

from __future__ import annotations

from dataclasses import dataclass

ANSWERS = "answers.json"
"""The file beside a report's page with what may be shown to anybody: questions that a person chose, and the answers."""


@dataclass(frozen=True)
class Answer:
    """One answer; `cut` if the time limit ended it."""

    text: str
    cut: bool = False


@dataclass(frozen=True)
class ModelAnswers:
    """One model's answers, in the order of the questions; fewer if time ran out.

    Attributes:
        who: base, trained or gguf.
        name: the file's quantization type, for gguf.
        missing: why answers are missing; "" if none are.
    """

    who: str
    name: str
    answers: tuple[Answer, ...] = ()
    missing: str = ""
