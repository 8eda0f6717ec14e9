"""The live panel of a training on a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from aegis.messages import phrase
from aegis.runs.stage_times import duration
from aegis.soul.gate import Phase, gate, phase

_SMOOTHING = 0.95
_WIDE = 72
"""Minimum width, in columns, for two facts per line."""
_PHASES = {
    Phase.STABLE: "live.stable",
    Phase.TRANSITIONING: "live.transitioning",
    Phase.GOLDEN: "live.golden",
}
_COLOURS = {Phase.STABLE: "blue", Phase.TRANSITIONING: "yellow", Phase.GOLDEN: "green"}


def phase_text(name: Phase, encoding: str) -> str:
    """Return the name of a phase as this encoding can show it; cp932 has the words but not the coloured circle."""
    text = phrase(_PHASES[name])
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.partition(" ")[2]
    return text


class TrainingPanel:
    """The state of a training, and its panel."""

    def __init__(self, console: Console, start: int, stop: int) -> None:
        self._console = console
        self._start = start
        self._stop = stop
        self._loss: float | None = None
        self._sum = self._weight = 0.0
        self._read = start
        self._alpha: float | None = None
        self._row: dict[str, object] = {}
        self._peak_bytes = 0.0
        self._heldout: tuple[int, float] | None = None
        self._kept: tuple[int, float] | None = None
        self._saved: tuple[int, float] | None = None
        self._bars = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn(phrase("live.left")),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            # long enough that the estimate includes evaluation on the held-out windows and saving
            speed_estimate_period=600,
        )
        self._bar = self._bars.add_task("", total=stop, completed=start)

    @contextmanager
    def shown(self) -> Iterator[TrainingPanel]:
        """Show the panel until the block ends; then it is removed, and only the lines above it stay."""
        with Live(console=self._console, get_renderable=self.draw, refresh_per_second=4, transient=True):
            yield self

    def step(self, done: int, read: int, loss: float, alpha: float) -> None:
        """Record a step's numbers; a step that was read before is not counted twice."""
        self._bars.update(self._bar, completed=done)
        if read > self._read:
            self._read, self._loss, self._alpha = read, loss, alpha
            self._sum = _SMOOTHING * self._sum + (1 - _SMOOTHING) * loss
            self._weight = _SMOOTHING * self._weight + 1 - _SMOOTHING

    def saved(self, step: int) -> None:
        """Record that a checkpoint was saved."""
        self._saved = step, time.monotonic()

    def metrics(self, row: dict[str, object]) -> None:
        """Record the row of a logging step."""
        self._row = row
        # on a CPU a row has the memory in use now
        self._peak_bytes = max(self._peak_bytes, _number(row, "peak_bytes"))
        if isinstance(row.get("heldout_loss"), float):
            self._heldout = int(str(row["step"])), float(str(row["heldout_loss"]))
        if isinstance(row.get("keep_kl"), float):
            self._kept = int(str(row["step"])), float(str(row["keep_kl"]))

    def draw(self) -> RenderableType:
        """Return the panel of the current state, for the current width of the console."""
        wide = self._console.width >= _WIDE
        facts = self._facts()
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        for _ in range(2 if wide else 1):
            table.add_column(no_wrap=True, style="dim")
            table.add_column(no_wrap=True, ratio=1)
        pairs = zip(facts[::2], facts[1::2], strict=True) if wide else ((fact,) for fact in facts)
        for pair in pairs:
            table.add_row(*(cell for fact in pair for cell in fact))
        title = Text(phrase("live.title", done=self._bars.tasks[0].completed, stop=self._stop))
        if "epoch" in self._row:
            title.append(phrase("live.epoch", epoch=_number(self._row, "epoch")))
        rows = Group(table, self._bars.get_renderable())
        # on Ctrl-C a terminal writes ^C at the cursor: after a full line it would begin a new line that is not erased
        return Group(Panel(rows, title=title, title_align="left"), Text())

    def _facts(self) -> list[tuple[str, Text]]:
        """Return an even number of pairs of label and value."""
        waiting = Text("-", style="dim")
        smoothed = Text(f"{self._sum / self._weight:.4f}") if self._weight else waiting
        heldout, kept, turned, speed, memory = waiting, waiting, waiting, waiting, waiting
        if self._heldout:
            heldout = Text(phrase("live.loss_at", loss=self._heldout[1], step=self._heldout[0]))
        if self._kept:
            kept = Text(phrase("live.kept_at", kl=self._kept[1], step=self._kept[0]))
        if isinstance(angles := self._row.get("turned_degrees"), list):
            turned = Text(phrase("live.degrees", median=float(angles[len(angles) // 2])))
        if self._row:
            speed = Text(phrase("live.tokens_per_second", speed=_number(self._row, "tokens_per_second")))
            memory = Text(phrase("live.at_most", gib=self._peak_bytes / 2**30))
        return [
            (phrase("live.loss"), waiting if self._loss is None else Text(f"{self._loss:.4f}")),
            (phrase("live.smoothed"), smoothed),
            (phrase("live.heldout"), heldout),
            (phrase("live.kept"), kept),
            (phrase("live.turned"), turned),
            (phrase("live.checkpoint"), self._checkpoint()),
            ("α", waiting if self._alpha is None else Text(f"{self._alpha:+.3f}")),
            (phrase("live.phase"), waiting if self._alpha is None else self._phase(self._alpha)),
            ("g", waiting if self._alpha is None else Text(f"{gate(self._alpha):.4f}")),
            (phrase("live.rate"), Text(f"{_number(self._row, 'learning_rate'):.2e}") if self._row else waiting),
            (phrase("live.speed"), speed),
            (phrase("live.memory"), memory),
        ]

    def _checkpoint(self) -> Text:
        if self._saved is None:
            older = phrase("live.before_start", step=self._start) if self._start else phrase("live.none_yet")
            return Text(older, style="dim")
        step, moment = self._saved
        return Text(phrase("live.saved", step=step, age=duration(time.monotonic() - moment)))

    def _phase(self, alpha: float) -> Text:
        # the row holds the target, which α alone does not show
        named = self._row.get("phase")
        name = Phase(named) if named else phase(alpha)
        return Text(phase_text(name, self._console.encoding), style=_COLOURS[name])


def _number(row: dict[str, object], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
