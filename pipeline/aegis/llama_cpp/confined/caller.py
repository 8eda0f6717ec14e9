"""The caller of a confined process, as seen from that process."""

from __future__ import annotations

import threading
from typing import IO

from aegis.llama_cpp.confined.frames import Message, write


class Caller:
    """The caller whose request is being answered."""

    def __init__(self, replies: IO[bytes]) -> None:
        self._replies = replies
        self._number = 0
        self._left = threading.Event()

    @property
    def has_left(self) -> bool:
        """Whether the caller has cancelled the request."""
        return self._left.is_set()

    def let_wait(self) -> None:
        """Report that the next answer is being made, so that its deadline starts again."""
        write(self._replies, Message({"under_way": True}))

    def come(self, number: int) -> None:
        """Start the request with this number."""
        self._number = number
        self._left.clear()

    def leave(self, number: int) -> None:
        """Mark the request with this number as cancelled; ignored if another one is being answered."""
        if number == self._number:
            self._left.set()
