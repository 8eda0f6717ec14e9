"""Tests of progress for people and for programs, and of a command's last lines."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from aegis import progress
from aegis.cli.console import tasks
from aegis.cli.console.reporters import ConsoleReporter, JsonReporter
from aegis.cli.exit import print_error
from aegis.cli.screens import results
from aegis.errors import AegisError, EnvironmentFault, UsageError
from aegis.messages import VARIABLE, phrase
from aegis.report.card import ollama_name

ROW = {
    "step": 10,
    "loss": 3.25,
    "task_loss": 3.2,
    "heldout_loss": 3.5,
    "keep_kl": 0.0123,
    "alpha": 1.618,
    "gate": 0.8345,
    "phase": "golden",
    "tokens_per_second": 812.5,
    "grad_norm": float("inf"),
}


def test_every_error_has_the_exit_code_of_the_table() -> None:
    """DESIGN's exit codes, each held by one class or by a class under it."""
    codes: dict[str, int] = {}
    classes = [AegisError]
    while classes:
        known = classes.pop()
        codes[known.__name__] = known.exit_code
        classes += known.__subclasses__()
    assert codes == {
        "AegisError": 1,
        "UsageError": 2,
        "EnvironmentFault": 3,
        "PeerEnded": 3,
        "DataError": 4,
        "IntegrityError": 5,
        "UnsupportedModelError": 5,
        "DivergedError": 6,
        "ToolError": 7,
        "LockedError": 8,
        "Interrupted": 1,  # its own argument: 130 or 143
    }
    error = EnvironmentFault("disk.no_cache", directory="here", error="it is a file")
    assert str(error) == f"{error.what}\n{error.why}\n{error.fix}"
    assert (error.what, error.why) == ("here cannot be used as the cache", "it is a file")
    assert str(UsageError("publish.not_a_directory", final="x")) == "x is not a directory\nchoose another place"


def test_people_read_plain_lines_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the result goes to stderr, without colours; brackets are text, not markup."""
    monkeypatch.setattr(tasks, "_PLAIN_SECONDS", 0)
    reporter = ConsoleReporter()
    reporter.say("[bold]said[/bold]")
    reporter.warn("careful [red]")
    reporter.metrics(ROW)
    with reporter.task("hashing", 4, "B") as bar:
        bar.note("note")
        bar.advance(1)
    reporter.result("the [end]", {})
    shown = capsys.readouterr()
    assert shown.out == "the [end]\n"
    lines = shown.err.splitlines()
    assert lines[:2] == ["[bold]said[/bold]", "warning: careful [red]"]
    assert "held-out 3.5000" in lines[2]
    assert "🟢 Golden Ratio Reached" in lines[2]
    assert lines[3].startswith("hashing: 25 %")
    assert lines[4].startswith("hashing: done in")
    assert "\x1b" not in shown.err


def test_people_read_plain_lines_in_their_language(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control is the test before: the same lines in English."""
    monkeypatch.setattr(tasks, "_PLAIN_SECONDS", 0)
    monkeypatch.setenv(VARIABLE, "ja")
    reporter = ConsoleReporter()
    reporter.metrics(ROW)
    with reporter.training(0, 4) as watch:
        watch.step(1, 1, 3.25, 1.618)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "ステップ     10  損失 3.2000  検証損失 3.5000  ベースとの KL 0.0123  "
        "α +1.618  g 0.8345  🟢 黄金比に到達  812 トークン/秒"
    )
    assert lines[1].startswith("学習中: 25 %、残り約")
    assert lines[1].endswith("秒  損失 3.250  α +1.618")
    assert lines[2].endswith("秒で完了")


def test_quiet_still_shows_warnings_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = ConsoleReporter(quiet=True)
    reporter.say("said")
    reporter.metrics(ROW)
    with reporter.task("hashing", 4, "B") as bar:
        bar.advance()
        bar.note("x")
    reporter.warn("careful")
    reporter.result("result", {})
    assert capsys.readouterr() == ("result\n", "warning: careful\n")


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_progress_bars(monkeypatch: pytest.MonkeyPatch, colour: bool) -> None:
    """A live bar that goes when it is done; NO_COLOR takes the colours away and not the bar."""
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    screen = io.StringIO()
    reporter = ConsoleReporter()
    reporter.console = Console(file=screen, force_terminal=True, width=40, highlight=False)
    for total, unit in ((None, "it"), (3, "step"), (10, "B")):
        with reporter.task("work [x]", total, unit) as bar:
            bar.advance()
            bar.note("loss 3.2")
    reporter.warn("careful")
    assert "work [x]" in screen.getvalue()
    assert ("\x1b[33m" in screen.getvalue()) == colour


def test_a_terminal_that_cannot_redraw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook, or Emacs' shell."""
    monkeypatch.setenv("TERM", "dumb")
    screen = io.StringIO()
    reporter = ConsoleReporter()
    reporter.console = Console(file=screen, force_terminal=True, width=40, highlight=False)
    with reporter.task("work", 3, "step"), reporter.training(0, 4):
        pass
    assert "\x1b" not in screen.getvalue()
    assert screen.getvalue().splitlines()[-1].startswith("work: done")


@dataclass(frozen=True)
class Inner:
    path: Path
    ratio: float


@dataclass(frozen=True)
class Report:
    inner: Inner
    pairs: tuple[tuple[str, int], ...]
    nothing: None = None


def test_programs_read_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, ASCII, strict: no NaN, no Infinity; a warning is for people too."""
    reporter = JsonReporter()
    reporter.say("日本")
    reporter.warn("careful")
    reporter.metrics(ROW)
    with reporter.task("hashing", 4, "B") as bar:
        bar.advance()
        bar.note("x")
    reporter.result("text for people", Report(Inner(Path("a"), float("nan")), (("b", 1),)))
    shown = capsys.readouterr()

    def strict(constant: str) -> None:
        pytest.fail(f"{constant} is not JSON")

    rows = [json.loads(line, parse_constant=strict) for line in shown.out.splitlines()]
    assert shown.out.isascii()
    assert [row["event"] for row in rows] == ["message", "warning", "metrics", "begin", "end", "result"]
    assert rows[0]["text"] == "日本"
    assert (rows[2]["loss"], rows[2]["grad_norm"]) == (3.25, None)
    assert rows[5]["report"] == {"inner": {"path": "a", "ratio": None}, "pairs": [["b", 1]], "nothing": None}
    assert shown.err == "warning: careful\n"


def test_without_a_reporter_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    progress.install(progress.SilentReporter())
    progress.say("x")
    progress.warn("x")
    progress.metrics({})
    progress.result("x", {})
    with progress.task("x", 3) as bar:
        bar.advance()
        bar.note("x")
    assert capsys.readouterr() == ("", "")


def test_the_printed_next_commands_can_be_run(tmp_path: Path) -> None:
    """Paths with spaces are quoted; the name for Ollama is one that it takes."""
    from aegis.stages.export import ExportReport

    folder = tmp_path / "my run"
    folder.mkdir()
    (folder / "m.gguf").write_bytes(bytes(1_500_000))
    text = results.exported(ExportReport(folder, "AEGIS 日本/Phi-3.5", (folder / "m.gguf",), 4096))
    assert f"aegis chat --gguf '{folder / 'm.gguf'}'" in text
    assert "ollama create aegis----phi-3.5 -f" in text
    assert f"llama-server -m '{folder / 'm.gguf'}' -c 4096" in text
    assert "1.5 MB" in text
    assert ollama_name("日本") == "aegis"


def test_no_shown_text_has_control_codes_for_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A model's own words piece by piece, a file's name, a library's error: what the terminal gets is ink."""
    hostile = "\x1b]52;c;cm0gLXJm\x07"
    reporter = ConsoleReporter()
    assert reporter.stream(hostile, [hostile[:1], hostile[1:], "\x9b2J", "桜\n"], alone=False).startswith(hostile)
    reporter.say(hostile)
    reporter.warn(hostile)
    reporter.result(hostile, {})
    with reporter.task(phrase("base.downloading", name=hostile), 1, "B") as task:
        task.advance()
    print_error(hostile, hostile, hostile)
    shown = capsys.readouterr()
    for text in (shown.out, shown.err):
        assert not set(text) & {"\x1b", "\x07", "\x9b"}
        assert text.count("\\x1b]52;c;cm0gLXJm\\x07") >= 2
    assert "桜\n" in shown.out
