"""Tests of work beside the caller's: both run at once, and its error arrives where its result would."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from aegis.background import Background
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
