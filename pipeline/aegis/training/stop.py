"""Signals while training: the step is finished and saved first; asked twice, it stops at once.

A terminal that is closed asks too (SIGHUP): who trains over a line that breaks keeps the step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aegis import progress
from aegis.messages import phrase
from aegis.signals import EXIT_CODES, signal_handlers, terminating_signals

OTHERS_ASKED = EXIT_CODES["SIGTERM"]
"""The exit code of a process that ends because another one of its training was asked to."""


class StopRequest:
    """Whether, and with which exit code, the user wants the loop to end."""

    exit_code: int | None = None


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Turn the first signal into a request, and leave the second to the handler that stood before.

    Outside the main thread nothing changes.
    """
    request = StopRequest()
    codes = terminating_signals()
    before = {number: signal.getsignal(number) for number in codes}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.exit_code is None:
            request.exit_code = codes[number]
            progress.warn(phrase("train.stopping"))
            return
        if callable(standing := before[number]):
            standing(number, frame)
        raise KeyboardInterrupt

    with signal_handlers(codes, handle):
        yield request
