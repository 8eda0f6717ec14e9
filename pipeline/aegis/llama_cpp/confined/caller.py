"""Who waits for a confined process's answers, as that process sees them."""

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
        """Whether nobody wants the rest of the answers."""
        return self._left.is_set()

    def let_wait(self) -> None:
        """Tell that the next answer is under way: its deadline starts anew."""
        write(self._replies, Message({"under_way": True}))

    def come(self, number: int) -> None:
        """Begin with the request of this number."""
        self._number = number
        self._left.clear()

    def leave(self, number: int) -> None:
        """Take note that nobody waits for this request any more; another may be under way."""
        if number == self._number:
            self._left.set()
