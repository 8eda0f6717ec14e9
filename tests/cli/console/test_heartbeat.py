"""Tests of the signs of life: a command that shows nothing for five seconds says that it is at work."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from aegis.cli.console import heartbeat
from aegis.cli.console.heartbeat import Heartbeat
from aegis.cli.console.reporters import ConsoleReporter, JsonReporter


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_QUIET_S", 0.2)
    monkeypatch.setattr(heartbeat, "_LOOK_S", 0.01)


def until(found: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 20
    while not found() and time.monotonic() < ends:
        time.sleep(0.01)
    return found()


def test_silence_is_broken_and_then_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 1, 2, 3 and 6 times the limit; what is shown begins it anew; after the block nothing comes."""
    monkeypatch.setattr(heartbeat, "_OFTEN", 3)
    shown: list[float] = []
    beginnings: list[float] = []

    def show(seconds: float) -> None:
        shown.append(seconds)
        beginnings.append(time.monotonic() - seconds)

    heard = [time.monotonic()]
    threads = set(threading.enumerate())
    with Heartbeat(lambda: heard[0], show):
        assert until(lambda: len(shown) >= 4)
        for found, limits in zip(shown, (1, 2, 3, 6), strict=False):
            assert found >= limits * 0.2
        heard[0] = time.monotonic()
        assert until(lambda: beginnings[-1] >= heard[0])
    assert until(lambda: threads >= set(threading.enumerate()))


def test_a_command_that_shows_something_is_left_in_peace() -> None:
    shown: list[float] = []
    with Heartbeat(time.monotonic, shown.append):
        time.sleep(0.6)
    assert not shown


def test_people_get_a_line_unless_a_bar_is_live() -> None:
    reporter = ConsoleReporter()
    reporter.console.file = out = io.StringIO()
    with Heartbeat(reporter.heard, reporter.show_life):
        assert until(lambda: "still at work" in out.getvalue())
    terminal = ConsoleReporter()
    terminal.console = type(terminal.console)(file=io.StringIO(), force_terminal=True)
    assert terminal.heard() == 0.0
    with terminal.task("a bar", 10, "B"):
        before = time.monotonic()
        heard = terminal.heard()
        assert before <= heard <= time.monotonic()
    assert isinstance(terminal.console, Console)


def test_programs_get_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    reporter = JsonReporter()
    reporter.say("hello")
    before = reporter.heard()
    reporter.show_life(5.02)
    assert reporter.heard() == before
    _, alive = map(json.loads, capsys.readouterr().out.splitlines())
    assert alive == {"event": "alive", "seconds": 5.0}
