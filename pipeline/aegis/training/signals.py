"""SIGINT and SIGTERM while training: the step is finished and saved first; asked twice, it stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aegis import progress
from aegis.messages import phrase

_EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGBREAK": 143}

OTHERS_ASKED = _EXIT_CODES["SIGTERM"]
"""The exit code of a process that ends because another one of its training was asked to."""


class StopRequest:
    """Whether, and with which exit code, the user wants the loop to end."""

    exit_code: int | None = None


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Turn the first signal into a request; outside the main thread, where Python forbids it, change nothing."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        if request.exit_code is not None:
            raise KeyboardInterrupt
        request.exit_code = _EXIT_CODES[signal.Signals(number).name]
        progress.warn(phrase("train.stopping"))

    numbers = [getattr(signal, name) for name in _EXIT_CODES if hasattr(signal, name)]
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
