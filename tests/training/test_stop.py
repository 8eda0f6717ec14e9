"""Tests of signals during training: the first requests a stop, the second stops at once, and handlers are restored."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from aegis.training.stop import deferred_stop
from tests.conftest import Recorder

pytestmark = pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(
    number: signal.Signals, code: int, reporter: Recorder
) -> None:
    before = signal.getsignal(number)
    with deferred_stop() as request:
        assert request.exit_code is None
        os.kill(os.getpid(), number)
        assert request.exit_code == code
        assert reporter.messages == ["stopping after this step; press again to stop at once"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_goes_to_the_previous_handler(number: signal.Signals) -> None:
    """The command's own handler says with which code it ends: 143, not Ctrl-C's 130, after SIGTERM."""

    def leave(_number: int, _frame: object) -> None:
        raise SystemExit(143)

    before = signal.signal(number, leave)
    try:
        with deferred_stop():
            os.kill(os.getpid(), number)
            with pytest.raises(SystemExit, match="143"):
                os.kill(os.getpid(), number)
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_an_ignored_signal_stays_ignored(number: signal.Signals) -> None:
    """As SIGINT is in what a script starts in the background; the control is another signal."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with deferred_stop() as request:
            os.kill(os.getpid(), number)
            assert request.exit_code is None
            other = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
            os.kill(os.getpid(), other)
            assert request.exit_code == 128 + other
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_each_block_has_its_own_request() -> None:
    with deferred_stop():
        os.kill(os.getpid(), signal.SIGTERM)
    with deferred_stop() as request:
        assert request.exit_code is None


def test_the_previous_handlers_are_restored_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="x"), deferred_stop():
        raise ValueError("x")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_nothing_changes() -> None:
    """Python allows handlers in the main thread only: elsewhere the block just runs."""
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with deferred_stop() as request:
            seen.append((request.exit_code, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
