"""The caller of a confined process, as seen from that process."""

from __future__ import annotations

import threading
from typing import IO

from aegis.llama_cpp.confined.frames import Message, write
from aegis.llama_cpp.confined.limits import limit_processor_time


class Caller:
    """The caller whose request is being answered."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._number = 0
        self._seconds: float | None = None
        self._left = threading.Event()

    @property
    def has_left(self) -> bool:
        """Whether the caller has cancelled the request."""
        return self._left.is_set()

    def let_wait(self) -> None:
        """Report that the next answer is being made, so that its deadline starts again."""
        self.give_time()
        write(self._replies, Message({"under_way": True}))

    def give_time(self) -> None:
        """Start the limit on processor time again: it holds per answer."""
        limit_processor_time(self._seconds)

    def come(self, number: int, seconds: float) -> None:
        """Start the request with this number, and with a time limit per answer."""
        self._number = number
        self._seconds = seconds
        self._left.clear()

    def leave(self, number: int) -> None:
        """Mark the request with this number as cancelled; ignored if another one is being answered."""
        if number == self._number:
            self._left.set()
