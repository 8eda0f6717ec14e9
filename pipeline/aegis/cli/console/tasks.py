"""How one task is shown: a live bar, a line from time to time, or a JSON object from time to time."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aegis.messages import phrase
from aegis.progress import Task

_PLAIN_SECONDS = 15
_JSON_SECONDS = 1


class _Emit:
    """Writes JSON lines to stdout, strict and in ASCII; `last` is when the last was written."""

    last = 0.0

    def __call__(self, row: dict[str, object]) -> None:
        self.last = time.monotonic()
        sys.stdout.write(json.dumps(_plain(row), ensure_ascii=True, allow_nan=False) + "\n")
        sys.stdout.flush()


emit = _Emit()


def _plain(value: object) -> object:
    """Return a value as JSON can hold it: without NaN and Inf."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def columns_for(total: float | None, unit: str, encoding: str) -> list[ProgressColumn]:
    """The columns of a bar; without a total, a spinner."""
    title = TextColumn("{task.description}", markup=False)
    note = TextColumn("{task.fields[note]}", markup=False)
    if total is None:
        # the usual spinner is made of Braille, which cp932 does not have
        return [SpinnerColumn("dots" if encoding.startswith("utf") else "line"), title, TimeElapsedColumn(), note]
    count: ProgressColumn = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    return [title, BarColumn(), count, TimeRemainingColumn(), note]


class BarTask:
    """A bar on a terminal."""

    def __init__(self, bars: Progress, title: str, total: float | None) -> None:
        self._bars = bars
        self._id = bars.add_task(title, total=total, note="")

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._id, amount)

    def grow(self, amount: float) -> None:
        self._bars.update(self._id, total=(self._bars.tasks[0].total or 0) + amount)

    def note(self, text: str) -> None:
        self._bars.update(self._id, note=text)


class _Countdown:
    """The progress of a task, and when to report it next."""

    def __init__(self, total: float | None, every_s: float) -> None:
        self.done = 0.0
        self.began = self._spoke = time.monotonic()
        self.total = total
        self._every_s = every_s

    def advance(self, amount: float) -> bool:
        """Return whether the next report is due."""
        self.done += amount
        now = time.monotonic()
        due = bool(self.total) and now - self._spoke >= self._every_s
        if due:
            self._spoke = now
        return due

    def grow(self, amount: float) -> None:
        self.total = (self.total or 0) + amount

    def left_s(self) -> float:
        """Return the seconds until the end, at the average speed so far."""
        passed = time.monotonic() - self.began
        return passed * ((self.total or 0.0) / self.done - 1) if self.done else 0.0


class PlainTask:
    """A line from time to time, so that a log shows progress and stays short."""

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        self._console = console
        self._title = title
        self._note = ""
        self._countdown = _Countdown(total, _PLAIN_SECONDS)

    def advance(self, amount: float = 1) -> None:
        if self._countdown.advance(amount) and self._countdown.total:
            share, left_s = self._countdown.done / self._countdown.total, self._countdown.left_s()
            self._line(f"{phrase('bars.left', percent=100 * share, seconds=left_s)}  {self._note}")

    def grow(self, amount: float) -> None:
        self._countdown.grow(amount)

    def note(self, text: str) -> None:
        self._note = text

    def end(self) -> None:
        self._line(phrase("bars.done", seconds=time.monotonic() - self._countdown.began))

    def _line(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}".rstrip(), markup=False)


class JsonTask:
    """A JSON object from time to time."""

    def __init__(self, title: str, total: float | None) -> None:
        self._title = title
        self._note = ""
        self._countdown = _Countdown(total, _JSON_SECONDS)

    def advance(self, amount: float = 1) -> None:
        if self._countdown.advance(amount):
            done, total, left_s = self._countdown.done, self._countdown.total, round(self._countdown.left_s(), 1)
            row = {"task": self._title, "done": done, "total": total, "seconds_left": left_s, "note": self._note}
            emit({"event": "progress", **row})

    def grow(self, amount: float) -> None:
        self._countdown.grow(amount)

    def note(self, text: str) -> None:
        self._note = text


class TaskWatch:
    """A training shown as a task; its rows and checkpoints are reported separately."""

    def __init__(self, task: Task, start: int) -> None:
        self._task = task
        self._done = start

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        self._task.note(phrase("bars.training", loss=loss, alpha=alpha))
        self._task.advance(done - self._done)
        self._done = done

    def saved(self, step: int) -> None:
        pass


class JsonWatch(TaskWatch):
    """A training as JSON objects."""

    def saved(self, step: int) -> None:
        emit({"event": "checkpoint", "step": step})
