"""Reporters: live bars and lines on a terminal, plain lines without one, or JSON lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from aegis.cli.console.tasks import BarTask, JsonTask, JsonWatch, PlainTask, TaskWatch, columns_for, emit
from aegis.cli.console.training_panel import TrainingPanel, phase_text
from aegis.messages import phrase
from aegis.messages.layout import coloured
from aegis.messages.safe import printable
from aegis.progress import SilentTask, SilentWatch, Task, Watch
from aegis.soul.gate import Phase


class _Heard(Console):
    """A console that knows when it last printed."""

    heard = 0.0

    def print(self, *values: Any, **options: Any) -> None:
        self.heard = time.monotonic()
        super().print(*values, **options)


class ConsoleReporter:
    """Reports for people. Everything goes to stderr: stdout is for results."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = _Heard(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._panel: TrainingPanel | None = None
        self._screen = threading.Lock()
        """Held by the one live display that a terminal can show; the tasks of other threads are not drawn meanwhile."""

    @property
    def _draws(self) -> bool:
        """Whether the screen can be redrawn: it is a terminal, and not one that can only print (TERM=dumb)."""
        return self.console.is_terminal and not self.console.is_dumb_terminal

    def say(self, text: str) -> None:
        if not self._quiet:
            self.console.print(printable(text), markup=False)

    def warn(self, text: str) -> None:
        # a style of the whole line would leak into a live panel that is drawn again below it
        self.console.print(Text(phrase("console.warning", text=text), style="yellow"))

    def metrics(self, row: dict[str, object]) -> None:
        known = phrase("console.step", step=row["step"], loss=row["task_loss"])
        if row["heldout_loss"] is not None:
            known += f"  {phrase('console.heldout', loss=row['heldout_loss'])}"
        if row.get("keep_kl") is not None:
            known += f"  {phrase('console.kept', kl=row['keep_kl'])}"
        known += f"  α {row['alpha']:+.3f}  g {row['gate']:.4f}"
        if self._panel is not None:
            self._panel.metrics(row)
            if row["heldout_loss"] is not None:  # these rows stay visible after the panel is removed
                self.say(known)
            return
        named = phase_text(Phase(row["phase"]), self.console.encoding)
        self.say(f"{known}  {named}  {phrase('console.speed', speed=row['tokens_per_second'])}")

    def result(self, text: str, report: object) -> None:
        sys.stdout.write(f"{coloured(printable(text))}\n")
        sys.stdout.flush()

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
        sys.stdout.write("" if alone else f"{printable(speaker)}: ")
        whole = ""
        for piece in pieces:
            sys.stdout.write(printable(piece))
            sys.stdout.flush()
            whole += piece
        sys.stdout.write("\n")
        sys.stdout.flush()
        return whole

    def heard(self) -> float:
        """Return when something was last shown; a live display shows itself all the time."""
        return time.monotonic() if self._screen.locked() else self.console.heard

    def show_life(self, seconds: float) -> None:
        """Print that the command is at work, after so many seconds of silence."""
        heard = self.console.heard
        self.say(phrase("console.at_work", seconds=seconds))
        self.console.heard = heard  # the silence goes on

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[Task]:
        if self._quiet or (self._draws and not self._screen.acquire(blocking=False)):
            yield SilentTask()
        elif self._draws:
            try:
                columns = columns_for(total, unit, self.console.encoding)
                with Progress(*columns, console=self.console, transient=True) as bars:
                    yield BarTask(bars, title, total)
            finally:
                self._screen.release()
        else:
            task = PlainTask(self.console, title, total)
            yield task
            task.end()

    @contextmanager
    def training(self, start: int, stop: int) -> Iterator[Watch]:
        if self._quiet:
            yield SilentWatch()
        elif self._draws:
            self._panel = TrainingPanel(self.console, start, stop)
            try:
                with self._screen, self._panel.shown() as panel:
                    yield panel
            finally:
                self._panel = None
        else:
            with self.task(phrase("train.training"), stop - start, "step") as task:
                yield TaskWatch(task, start)


class JsonReporter:
    """Reports for programs: one JSON object per line on stdout, texts for people on stderr."""

    def __init__(self) -> None:
        self._people = ConsoleReporter(quiet=True)

    def heard(self) -> float:
        return emit.last

    def show_life(self, seconds: float) -> None:
        heard = emit.last
        emit({"event": "alive", "seconds": round(seconds, 1)})
        emit.last = heard

    def say(self, text: str) -> None:
        emit({"event": "message", "text": text})

    def warn(self, text: str) -> None:
        emit({"event": "warning", "text": text})
        self._people.warn(text)

    def metrics(self, row: dict[str, object]) -> None:
        emit({"event": "metrics", **row})

    def result(self, text: str, report: object) -> None:
        emit({"event": "result", "report": report})

    def stream(self, speaker: str, pieces: Iterable[str], *, alone: bool) -> str:
        whole = ""
        for piece in pieces:
            emit({"event": "piece", "speaker": speaker, "text": piece})
            whole += piece
        emit({"event": "answer", "speaker": speaker, "text": whole})
        return whole

    @contextmanager
    def task(self, title: str, total: float | None, unit: str) -> Iterator[Task]:
        emit({"event": "begin", "task": title, "total": total, "unit": unit})
        yield JsonTask(title, total)
        emit({"event": "end", "task": title})

    @contextmanager
    def training(self, start: int, stop: int) -> Iterator[Watch]:
        with self.task(phrase("train.training"), stop - start, "step") as task:
            yield JsonWatch(task, start)
