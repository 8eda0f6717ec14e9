"""Signals while training: the step is finished and saved first; asked twice, it stops at once.

A terminal that is closed asks too (SIGHUP): who trains over a line that breaks keeps the step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from aegis import progress
from aegis.messages import phrase

_EXIT_CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGBREAK": 143}

_HANGUP = getattr(signal, "SIGHUP", None)

OTHERS_ASKED = _EXIT_CODES["SIGTERM"]
"""The exit code of a process that ends because another one of its training was asked to."""


class StopRequest:
    """Whether, and with which exit code, the user wants the loop to end."""

    exit_code: int | None = None


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Turn the first signal into a request, and leave the second to the handler that stood before.

    Outside the main thread, where Python forbids handlers, nothing changes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.exit_code is None:
            request.exit_code = _EXIT_CODES[signal.Signals(number).name]
            progress.warn(phrase("train.stopping"))
            return
        if callable(standing := before.get(number)):
            standing(number, frame)
        raise KeyboardInterrupt

    for number in (getattr(signal, name) for name in _EXIT_CODES if hasattr(signal, name)):
        if number == _HANGUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup's wish
        before[number] = signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
