"""Signals that ask a process to end: their exit codes, and temporary handlers for them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

EXIT_CODES = {"SIGHUP": 129, "SIGINT": 130, "SIGTERM": 143, "SIGBREAK": 143}
"""Exit codes by name of the signal. SIGBREAK is Ctrl-Break on Windows."""


def terminating_signals() -> dict[int, int]:
    """Return exit codes by number for the signals of this system, without SIGHUP if it is ignored (nohup)."""
    found = {number: code for name, code in EXIT_CODES.items() if (number := getattr(signal, name, None)) is not None}
    hangup = getattr(signal, "SIGHUP", None)
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_IGN:
        del found[hangup]
    return found


@contextmanager
def signal_handlers(numbers: Iterable[int], answer: Any) -> Iterator[None]:
    """Let `answer` handle these signals while the block runs.

    Outside the main thread, where Python forbids handlers, nothing changes.
    """
    before: list[tuple[int, Any]] = []
    if threading.current_thread() is threading.main_thread():
        before = [(number, signal.signal(number, answer)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
