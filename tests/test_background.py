"""Tests of work beside the caller's: both run at once, and its error arrives where its result would."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial

import pytest

from aegis import background
from aegis.background import Background, two_at_a_time
from aegis.errors import UsageError


def test_both_run_at_once() -> None:
    """Each waits for the other: one after the other, neither would end."""
    here, there = threading.Event(), threading.Event()

    def work() -> bool:
        there.set()
        return here.wait(20)

    running = Background(work)
    assert there.wait(20)
    here.set()
    assert running.result() is True


def test_an_error_arrives_with_the_result_and_not_before() -> None:
    def fail() -> None:
        raise UsageError("cli.no_base")

    running = Background(fail)
    for _ in range(2):
        with pytest.raises(UsageError):
            running.result()


def test_a_process_that_ends_does_not_wait_for_it() -> None:
    code = (
        "import time; from aegis.background import Background; Background(lambda: time.sleep(600)); raise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 3


def test_two_run_at_a_time_and_their_results_keep_their_order() -> None:
    """The first waits for the second, which would never begin after it; the third begins when the first has ended."""
    second, ended = threading.Event(), threading.Event()

    def first() -> int:
        assert second.wait(20)
        ended.set()
        return 1

    def third() -> int:
        return 3 if ended.is_set() else 0

    assert list(two_at_a_time([first, lambda: second.set() or 2, third])) == [1, 2, 3]


def test_after_ctrl_c_both_that_run_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it comes while the caller waits for the first, which sees the end later than the second."""
    stop, late = threading.Event(), threading.Event()
    ended: list[int] = []
    wait = background.wait

    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.setattr(background, "wait", wait)
        threading.Timer(0.3, late.set).start()
        raise KeyboardInterrupt

    def work(number: int) -> None:
        assert stop.wait(20)
        assert number == 2 or late.wait(20)
        ended.append(number)

    monkeypatch.setattr(background, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(two_at_a_time([partial(work, 1), partial(work, 2)], stop))
    assert sorted(ended) == [1, 2]


def test_its_end_can_be_asked_for() -> None:
    """It sees that, and its error is nobody's any more."""
    stop = threading.Event()

    def work() -> None:
        assert stop.wait(20)
        raise KeyError

    Background(work, stop).end()
    assert stop.is_set()
