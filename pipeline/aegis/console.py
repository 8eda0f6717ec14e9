"""Progress on a terminal: bars that live, lines that stay; plain lines where there is no terminal; or JSON lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
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
from aegis.soul.gate import Phase

_PLAIN_SECONDS = 15


class ConsoleReporter:
    """For people. Everything goes to stderr: stdout is for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(phrase("console.warning", text=text), style="yellow", markup=False)

    def metrics(self, row: dict[str, object]) -> None:
        if self._quiet:
            return
        heldout = f"  held-out {row['heldout_loss']:.4f}" if row["heldout_loss"] is not None else ""
        self.console.print(
            f"step {row['step']:>6}  loss {row['task_loss']:.4f}{heldout}  α {row['alpha']:+.3f}  "
            f"g {row['gate']:.4f}  {Phase[str(row['phase']).upper()].value}  {row['tokens_per_second']:.0f} tokens/s",
            markup=False,
        )

    def result(self, text: str, report: object) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
        sys.stdout.write("" if alone else f"{speaker}: ")
        whole = ""
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            whole += piece
        sys.stdout.write("\n")
        sys.stdout.flush()
        return whole

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[Task]:
        if self._quiet:
            yield _NoTask()
        elif self.console.is_terminal:
            with Progress(*_columns(total, unit), console=self.console, transient=True) as bars:
                yield _BarTask(bars, title, total)
        else:
            task = _PlainTask(self.console, title, total)
            yield task
            task.end()


class JsonReporter:
    """For programs: one JSON object a line on stdout, people's text on stderr."""

    def __init__(self) -> None:
        self._people = ConsoleReporter(quiet=True)

    def say(self, text: str) -> None:
        _emit({"event": "message", "text": text})

    def warn(self, text: str) -> None:
        _emit({"event": "warning", "text": text})
        self._people.warn(text)

    def metrics(self, row: dict[str, object]) -> None:
        _emit({"event": "metrics", **row})

    def result(self, text: str, report: object) -> None:
        _emit({"event": "result", "report": report})

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
        whole = ""
        for piece in pieces:
            _emit({"event": "piece", "speaker": speaker, "text": piece})
            whole += piece
        _emit({"event": "answer", "speaker": speaker, "text": whole})
        return whole

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[Task]:
        _emit({"event": "begin", "task": title, "total": total, "unit": unit})
        yield _NoTask()
        _emit({"event": "end", "task": title})


def _emit(row: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(_plain(row), ensure_ascii=True, allow_nan=False) + "\n")
    sys.stdout.flush()


def _plain(value: object) -> object:
    """A value as JSON has it, which knows no NaN."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def _columns(total: float | None, unit: str) -> list[ProgressColumn]:
    title = TextColumn("{task.description}", markup=False)
    note = TextColumn("{task.fields[note]}", markup=False)
    if total is None:
        return [SpinnerColumn(), title, TimeElapsedColumn(), note]
    count: ProgressColumn = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    return [title, BarColumn(), count, TimeRemainingColumn(), note]


class _BarTask:
    def __init__(self, bars: Progress, title: str, total: float | None) -> None:
        self._bars = bars
        self._id = bars.add_task(title, total=total, note="")

    def advance(self, amount: float = 1) -> None:
        self._bars.advance(self._id, amount)

    def note(self, text: str) -> None:
        self._bars.update(self._id, note=text)


class _PlainTask:
    """A line now and then, so that a log shows life and stays short."""

    def __init__(self, console: Console, title: str, total: float | None) -> None:
        self._console = console
        self._title = title
        self._total = total
        self._done = 0.0
        self._note = ""
        self._began = self._spoke = time.monotonic()

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if self._total and now - self._spoke >= _PLAIN_SECONDS:
            self._spoke = now
            left = (now - self._began) * (self._total / self._done - 1) if self._done else 0.0
            self._line(f"{100 * self._done / self._total:.0f} %, about {left:.0f} s left  {self._note}")

    def note(self, text: str) -> None:
        self._note = text

    def end(self) -> None:
        self._line(f"done in {time.monotonic() - self._began:.1f} s")

    def _line(self, text: str) -> None:
        self._console.print(f"{self._title}: {text}".rstrip(), markup=False)


class _NoTask:
    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        pass
