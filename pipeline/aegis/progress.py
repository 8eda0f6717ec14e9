"""How a stage tells the outside what it is doing, without knowing of a console.

A stage calls the module's functions; the CLI installs a `Reporter` that draws them. Without one, in a
notebook or a test, nothing is printed. What is said goes to the `logging` of this program's name as well.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One bar."""

    def advance(self, amount: float = 1) -> None: ...

    def grow(self, amount: float) -> None:
        """There is so much more to do than was known."""
        ...

    def note(self, text: str) -> None: ...


class Watch(Protocol):
    """A training that is being watched, between two logging steps, whose rows go to `metrics`."""

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        """`done` steps are under way or over; loss and alpha are those of step `read`, which may be an earlier one."""
        ...

    def saved(self, step: int) -> None: ...


class Reporter(Protocol):
    """Where progress goes: a terminal, plain lines, JSON lines, nowhere."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def metrics(self, row: dict[str, object]) -> None: ...

    def result(self, text: str, report: object) -> None: ...

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str: ...

    def task(self, title: str, total: float | None, unit: str) -> AbstractContextManager[Task]: ...

    def training(self, start: int, stop: int) -> AbstractContextManager[Watch]: ...


class SilentTask:
    """Shows nothing."""

    def advance(self, amount: float = 1) -> None:
        pass

    def grow(self, amount: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class SilentWatch:
    """Watches nothing."""

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        pass

    def saved(self, step: int) -> None:
        pass


class SilentReporter:
    """Says nothing. The default, so that importing a stage never prints."""

    def say(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        pass

    def metrics(self, row: dict[str, object]) -> None:
        pass

    def result(self, text: str, report: object) -> None:
        pass

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
        return "".join(pieces)

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[Task]:
        yield SilentTask()

    @contextmanager
    def training(self, start: int, stop: int) -> Iterator[Watch]:
        yield SilentWatch()


_reporter: Reporter = SilentReporter()
_log = logging.getLogger("aegis")
_log.addHandler(logging.NullHandler())  # without it, Python prints warnings nobody has asked to see


def install(reporter: Reporter) -> None:
    """Send everything said from now on to `reporter`."""
    global _reporter
    _reporter = reporter


def say(text: str) -> None:
    """A line of information for the person."""
    _log.info(text)
    _reporter.say(text)


def warn(text: str) -> None:
    """A line the person should not miss."""
    _log.warning(text)
    _reporter.warn(text)


def metrics(row: dict[str, object]) -> None:
    """One logging step's numbers."""
    _reporter.metrics(row)


def result(text: str, report: object) -> None:
    """What a command came to: the text for people, the report (dataclasses, lists, numbers) for programs."""
    _log.info(text)
    _reporter.result(text, report)


def stream(speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
    """A text shown as it comes, and returned when it is whole; `speaker` need not be named if they are `alone`."""
    return _reporter.stream(speaker, pieces, alone=alone)


@contextmanager
def task(title: str, total: float | None = None, unit: str = "it") -> Iterator[Task]:
    """A bar over `total` units ('B' for bytes); `None` when the length is not known."""
    with _reporter.task(title, total, unit) as bar:
        yield bar


@contextmanager
def training(start: int, stop: int) -> Iterator[Watch]:
    """A training from step `start` to step `stop`; its logging steps' numbers go to `metrics` meanwhile."""
    with _reporter.training(start, stop) as watch:
        yield watch
