"""How a stage reports progress without depending on a console.

A stage calls the functions of this module; the CLI installs a `Reporter` that draws them. Without one, in a
notebook or a test, nothing is printed. Messages also go to the logger named "aegis".
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Task(Protocol):
    """One progress bar."""

    def advance(self, amount: float = 1) -> None: ...

    def grow(self, amount: float) -> None:
        """Add `amount` to the total."""
        ...

    def note(self, text: str) -> None: ...


class Watch(Protocol):
    """The display of a running training. It gets every step; the rows of logging steps go to `metrics`."""

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        """`done` steps are started or finished; loss and alpha belong to step `read`, which may be earlier."""
        ...

    def saved(self, step: int) -> None: ...


class Reporter(Protocol):
    """Where progress goes: a terminal, plain lines, JSON lines, or nowhere."""

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def metrics(self, row: dict[str, object]) -> None: ...

    def result(self, text: str, report: object) -> None: ...

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str: ...

    def task(self, title: str, total: float | None, unit: str) -> AbstractContextManager[Task]: ...

    def training(self, start: int, stop: int) -> AbstractContextManager[Watch]: ...


class SilentTask:
    """A task that shows nothing."""

    def advance(self, amount: float = 1) -> None:
        pass

    def grow(self, amount: float) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class SilentWatch:
    """A watch that shows nothing."""

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        pass

    def saved(self, step: int) -> None:
        pass


class SilentReporter:
    """The default reporter: it prints nothing, so that importing a stage never prints."""

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
_log.addHandler(logging.NullHandler())  # without it, Python prints warnings to stderr by default


def install(reporter: Reporter) -> None:
    """Send all later reports to `reporter`."""
    global _reporter
    _reporter = reporter


def say(text: str) -> None:
    """Print a line of information for the user."""
    _log.info(text)
    _reporter.say(text)


def warn(text: str) -> None:
    """Print a warning."""
    _log.warning(text)
    _reporter.warn(text)


def metrics(row: dict[str, object]) -> None:
    """Report the numbers of one logging step."""
    _reporter.metrics(row)


def result(text: str, report: object) -> None:
    """Report the result of a command: `text` for people, `report` (dataclasses, lists, numbers) for programs."""
    _log.info(text)
    _reporter.result(text, report)


def stream(speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
    """Show a text piece by piece and return it complete; the name of `speaker` may be left out if it is `alone`."""
    return _reporter.stream(speaker, pieces, alone=alone)


@contextmanager
def task(title: str, total: float | None = None, unit: str = "it") -> Iterator[Task]:
    """Show a bar over `total` units ('B' for bytes); a total of None means that the length is not known."""
    with _reporter.task(title, total, unit) as bar:
        yield bar


@contextmanager
def training(start: int, stop: int) -> Iterator[Watch]:
    """Show a training from step `start` to step `stop`; the numbers of its logging steps go to `metrics`."""
    with _reporter.training(start, stop) as watch:
        yield watch
