"""The time that each stage of `aegis run` took, its share of the whole, and about how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from aegis import progress
from aegis.messages import phrase

_USUAL = {"merge": 8.6, "export": 57.7, "verify": 96.9, "report": 25.3}
"""Seconds at 3.8 B parameters on an H200 with 16 cores, 2026-11-29. Only their proportions are used: what is left is
scaled by what these stages have taken so far. How long a training takes says nothing of them."""


class StageTimes:
    """The stages of one run, as they end.

    Attributes:
        taken: seconds by stage.
        kept: stages whose result stood there already.
    """

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self.kept: set[str] = set()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and say at its end what it took, its share, and what is left."""
        began = time.monotonic()
        yield
        self.taken[name] = time.monotonic() - began
        left = self.left_s()
        if left is None:
            progress.say(phrase("run.took", took=duration(self.taken[name])))
            return
        share = self.taken[name] / max(sum(self.taken.values()) + left, 1e-9)
        key = "run.took_and_left" if left else "run.took_of_all"
        whole = duration(sum(self.taken.values()))
        progress.say(phrase(key, took=duration(self.taken[name]), share=share, left=duration(left), whole=whole))

    def left_s(self) -> float | None:
        """Return the probable seconds of the stages to come; None if no stage has ended that tells of them."""
        known = [name for name in self.taken if name in _USUAL and name not in self.kept]
        if not known:
            return None
        pace = sum(self.taken[name] for name in known) / sum(_USUAL[name] for name in known)
        return pace * sum(usual for name, usual in _USUAL.items() if name not in self.taken)


def duration(seconds: float) -> str:
    """Return a duration as text, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return phrase("live.hours", hours=hours, minutes=minutes)
    return phrase("live.minutes", minutes=minutes, seconds=rest) if minutes else phrase("live.seconds", seconds=rest)
