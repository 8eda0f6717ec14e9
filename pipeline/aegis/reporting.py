"""The report of a run: the models are asked, and all that is known goes on one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from aegis.chat import ask
from aegis.errors import AegisError
from aegis.messages import language
from aegis.runs.run import Run
from aegis.chat.ask import Limits
from aegis.stages.report import Samples, write_report


def report(run: Run, limits: Limits, questions: Sequence[str] = (), *, reuse: bool = False) -> Path:
    """Write a run's report, and return the file.

    Args:
        questions: what to ask; those of held-out chats if there are none.
        reuse: keep a report that says the same already.

    Raises:
        UsageError: the run holds no training.
        EnvironmentFault: the disk is full.
    """

    def samples() -> Samples:
        if limits.count == 0 and not questions:
            return Samples(missing="--samples 0")
        try:
            asked = list(questions) or ask.questions_of(run, limits.count)
        except AegisError as error:
            return Samples(missing=error.what)
        return Samples(asked, ask.ask(run, asked, limits) if asked else (), heldout=not questions)

    return write_report(run, language(), samples, {**asdict(limits), "questions": list(questions)}, reuse=reuse)
