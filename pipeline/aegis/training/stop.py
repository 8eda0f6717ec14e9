"""Stops a training on a signal: the first one finishes and saves the step, the second one stops at once.

SIGHUP counts as well: if the terminal of a remote training closes, the step is saved.
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
"""The exit code of a process that ends because another process of its training was asked to end."""


class StopRequest:
    """Whether the loop must end, and with which exit code; None until a signal arrives."""

    exit_code: int | None = None


@contextmanager
def deferred_stop() -> Iterator[StopRequest]:
    """Turn the first signal into a stop request, and pass the second to the previous handler.

    An ignored signal stays ignored: nohup ignores SIGHUP, and a script's shell SIGINT for what it starts with `&`.
    Outside the main thread this changes nothing.
    """
    request = StopRequest()
    codes = {n: code for n, code in terminating_signals().items() if signal.getsignal(n) is not signal.SIG_IGN}
    before = {number: signal.getsignal(number) for number in codes}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.exit_code is None:
            request.exit_code = codes[number]
            progress.say(phrase("train.stopping"))
            return
        if callable(previous := before[number]):
            previous(number, frame)
        raise KeyboardInterrupt

    with signal_handlers(codes, handle):
        yield request
