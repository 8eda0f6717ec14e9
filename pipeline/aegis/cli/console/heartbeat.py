"""Shows that a command is at work when nothing else was shown for five seconds: an import, a cold disk, a long step."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

_QUIET_S = 4.7
"""Seconds between two signs, less than five with the time of a look."""
_OFTEN = 12
"""Signs that are so far apart, one minute of them; each later one comes after twice the silence."""
_LOOK_S = 0.25


class Heartbeat:
    """A thread that looks for silence while a `with` block runs.

    Args:
        heard: returns when something was last shown, by `time.monotonic`.
        show: called with the seconds since then; every five seconds for a minute of silence, then less often.
    """

    def __init__(self, heard: Callable[[], float], show: Callable[[float], None]) -> None:
        self._heard, self._show = heard, show
        self._ended = threading.Event()
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def _look(self) -> None:
        heard, due = self._began, _QUIET_S
        while not self._ended.wait(_LOOK_S):
            now, last = time.monotonic(), max(self._heard(), self._began)
            if last != heard:
                heard, due = last, _QUIET_S
            if now - heard >= due:
                self._show(now - heard)
                due = due + _QUIET_S if due < _OFTEN * _QUIET_S else 2 * due
