"""Tests of the training panel: it has every number, at any width and in any encoding."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from aegis.cli.console.reporters import ConsoleReporter, JsonReporter
from aegis.cli.console.training_panel import TrainingPanel, phase_text
from aegis.messages import VARIABLE
from aegis.messages.layout import cell_width
from aegis.soul.gate import Phase
from tests.cli.console.test_reporters import ROW
from tests.screen_texts import english_in

LABELS = (
    "loss",
    "smoothed",
    "held-out",
    "KL to base",
    "R turned",
    "checkpoint",
    "α",
    "phase",
    "g ",
    "rate",
    "speed",
    "memory",
)


class Screen(io.StringIO):
    """A terminal that can only show the characters of its encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def write(self, text: str) -> int:
        text.encode(self._encoding)
        return super().write(text)


def drawn(width: int, encoding: str, *, known: bool = True) -> list[str]:
    screen = Screen(encoding)
    console = Console(file=screen, force_terminal=True, width=width, color_system=None)
    panel = TrainingPanel(console, 400, 500)
    if known:
        panel.step(412, 411, 2.5, 1.618)
        panel.metrics({**ROW, "step": 410, "peak_bytes": 3 << 30})
        last = {"heldout_loss": None, "keep_kl": None, "turned_degrees": [0.0, 1, 2, 3.456, 4, 5, 6]}
        panel.metrics({**ROW, "step": 411, "peak_bytes": 1 << 30, **last})
        panel.saved(410)
    console.print(panel.draw())
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "cp932", "cp1252"])
def test_the_panel_fits_the_terminal_and_has_every_value(width: int, encoding: str) -> None:
    """Nothing is wider than the terminal, nothing is cut off, nothing is outside the encoding."""
    if encoding == "cp1252":  # it has no alpha either: the program's streams replace what they cannot write
        with pytest.raises(UnicodeEncodeError):
            drawn(width, encoding)
        return
    lines = drawn(width, encoding)
    text = "\n".join(lines)
    assert all(len(line) <= width for line in lines)
    assert all(label in text for label in LABELS)
    for shown in (
        "412 of 500",
        "2.5000",
        "3.5000 (step 410)",
        "0.0123 (step 410)",
        "3.46°",
        "+1.618",
        "Golden Ratio Reached",
        "0.8345",
        "812",
    ):
        assert shown in text, shown
    assert "3.00 GiB at most" in text
    assert "step 410, 0 s ago" in text
    assert ("🟢" in text) == (encoding == "utf-8")
    assert "…" not in text


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("known", [True, False])
def test_the_frame_is_straight_in_japanese(width: int, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The panel is as wide as the terminal in cells and has no English word."""
    english = "\n".join(drawn(width, "utf-8", known=known))
    monkeypatch.setenv(VARIABLE, "ja")
    lines = drawn(width, "cp932" if known else "utf-8", known=known)
    text = "\n".join(lines)
    assert {cell_width(line) for line in lines[:-1]} == {width}
    assert lines[-1] == ""  # the terminal's own ^C is written there, and erased with it
    assert "…" not in text
    for word in ("train", "step", "loss", "held-out", "checkpoint", "phase", "rate", "speed", "memory", "left"):
        assert word in english
        assert word not in text
    assert english_in(text) == []
    assert ("黄金比に到達" in text) == known


def test_the_panel_can_be_shown_before_the_first_step() -> None:
    text = "\n".join(drawn(80, "utf-8", known=False))
    assert "step 400 of 500" in text
    assert "step 400, before this start" in text


def test_a_phase_is_in_words_where_the_encoding_lacks_the_symbols() -> None:
    assert phase_text(Phase.TRANSITIONING, "utf-8") == "🟡 Transitioning"
    assert phase_text(Phase.TRANSITIONING, "cp932") == "Transitioning"
    assert phase_text(Phase.STABLE, "no-such-encoding") == "Stable"


def test_the_smoothed_loss_starts_at_the_first_and_counts_a_step_once() -> None:
    console = Console(file=io.StringIO(), width=80)
    panel = TrainingPanel(console, 0, 10)
    for _ in range(5):
        panel.step(1, 1, 4.0, -5.0)
    panel.step(2, 2, 2.0, -5.0)
    with console.capture() as captured:
        console.print(panel.draw())
    # weights 0.95 and 1 of what was seen: (0.95 · 4 + 2) / 1.95
    assert "2.9744" in captured.get()


def test_the_panel_leaves_only_the_milestones_on_a_terminal() -> None:
    """A bar within it is not drawn; rows without a held-out loss only move the panel; at the end it is gone."""
    screen = io.StringIO()
    reporter = ConsoleReporter()
    reporter.console = Console(file=screen, force_terminal=True, width=60, highlight=False)
    with reporter.training(0, 20) as watch:
        watch.step(10, 10, 3.2, 1.618)
        reporter.metrics({**ROW, "heldout_loss": None, "step": 9, "peak_bytes": 1})
        with reporter.task("hashing [x]", 3, "B") as bar:
            bar.advance()
        reporter.metrics({**ROW, "peak_bytes": 1})
        watch.saved(10)
    assert "train: step 10 of 20" in screen.getvalue()
    assert "hashing" not in screen.getvalue()
    assert "step     10  loss 3.2000  held-out 3.5000" in screen.getvalue()
    assert "step      9" not in screen.getvalue()
    with reporter.task("hashing [x]", 3, "B") as bar:
        bar.advance()
    assert "hashing" in screen.getvalue()


def test_without_a_terminal_training_prints_lines(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet, shown in ((False, "training: done in"), (True, "")):
        reporter = ConsoleReporter(quiet=quiet)
        with reporter.training(0, 2) as watch:
            watch.step(1, 1, 3.2, -5.0)
            reporter.metrics({**ROW, "peak_bytes": 1})
            watch.saved(1)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (0 if quiet else 2)
        assert quiet or lines[-1].startswith(shown)


def test_programs_get_events_of_progress_and_checkpoints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    from aegis.cli.console import tasks

    monkeypatch.setattr(tasks, "_JSON_SECONDS", 0)
    reporter = JsonReporter()
    with reporter.training(4, 8) as watch:
        watch.step(6, 5, 3.2, -5.0)
        watch.saved(6)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["event"] for row in rows] == ["begin", "progress", "checkpoint", "end"]
    assert (rows[1]["task"], rows[1]["done"], rows[1]["total"]) == ("training", 2, 4)
    assert rows[1]["seconds_left"] >= 0
    assert rows[2]["step"] == 6
