"""Sends requests to a confined process, which is started when it is needed and killed and replaced when it is overdue.

A deadline inside one process fails while a call into C does not return: it may hold Python's interpreter lock, so that
no other thread runs and Ctrl-C waits. Killing another process always works.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from aegis.errors import AegisError
from aegis.llama_cpp.confined.frames import Message
from aegis.llama_cpp.confined.limits import private_bytes
from aegis.llama_cpp.confined.running import Failed, Running, TooLarge

_TRIES = 2
_START_SECONDS = 60.0
"""Minimum time limit for a process to start, load its module and be set up; input does not change that time."""


class Confined:
    """A process that answers with `answers(message, caller)` of a module.

    Args:
        module: the module's name; its `answers` takes a `Message` and a `Caller`, and yields `Message`s.
        setup: the first request to each new process.
    """

    def __init__(self, module: str, setup: Message | None = None) -> None:
        self._module = module
        self._setup = setup
        self._lock = threading.Lock()
        self._running: Running | None = None
        self._number = 0

    def ask(
        self, fields: dict[str, object], blob: bytes = b"", *, seconds: float, memory_bytes: int | None = None
    ) -> Message:
        """Return the single answer to a request; raises as `stream`."""
        (answer,) = self.stream(fields, blob, seconds=seconds, memory_bytes=memory_bytes)
        return answer

    def stream(
        self, fields: dict[str, object], blob: bytes = b"", *, seconds: float, memory_bytes: int | None = None
    ) -> Iterator[Message]:
        """Yield the answers to a request. Requests wait for each other; closing the iterator early cancels the request.

        Args:
            seconds: time limit per answer.
            memory_bytes: maximum memory for all answers together, beyond what the process has at the start.

        Raises:
            Overdue, TooLarge, Ended, Failed: see there; the next request is answered in each case.
            AegisError: the module raised it.
        """
        with self._lock:
            self._number += 1
            request = Message(_envelope(fields, self._number, seconds, memory_bytes), blob)
            whole = False
            try:
                running = self._asked(request, seconds)
                # once per request: a process whose answer has many pieces could grow by this much with each
                max_bytes = None if memory_bytes is None else private_bytes(running.child.pid) + memory_bytes
                while (answer := running.answer(seconds, max_bytes)) is not None:
                    yield answer
                whole = True
            except GeneratorExit:
                whole = running.cancel(self._number, seconds)
                raise
            except (Failed, TooLarge, AegisError):
                whole = self._running is not None and self._running.is_alive
                raise
            finally:
                if not whole:
                    self.close()

    def leave_off(self) -> None:
        """Cancel, from any thread, the rest of the answers that `stream` is yielding.

        A request that the process has not taken up yet is not cancelled; a later call cancels it.
        """
        if running := self._running:
            running.tell_left(self._number)

    @property
    def pid(self) -> int | None:
        """The id of the process; None if there is none."""
        return self._running.child.pid if self._running else None

    def start(self, seconds: float) -> None:
        """Start the process now, if there is none, and wait until it is set up; raises as `stream`."""
        with self._lock:
            self._started(seconds)

    def close(self) -> None:
        """End the process, if there is one; from any thread, also while `stream` waits for it and raises Ended."""
        running, self._running = self._running, None
        if running:
            running.end()

    def _asked(self, request: Message, seconds: float) -> Running:
        """Send the request and return the process that accepted it; a process that has ended is replaced."""
        seconds = max(seconds, _START_SECONDS)
        for _ in range(_TRIES):
            running = self._started(seconds)
            running.send(request)
            if running.takes_up(seconds):
                break
            self.close()
        return running

    def _started(self, seconds: float) -> Running:
        running = self._running
        # after a fork the process belongs to the parent, whose answers would arrive here
        if running and running.owner == os.getpid() and running.is_alive:
            return running
        self._running = running = Running(self._module)
        if self._setup is not None:
            try:
                running.send(Message(_envelope(self._setup.fields, 0, seconds, None), self._setup.blob))
                while running.answer(seconds, None) is not None:
                    pass
            except BaseException:
                self.close()
                raise
        return running


def _envelope(fields: dict[str, object], number: int, seconds: float, memory_bytes: int | None) -> dict[str, object]:
    return {"request": fields, "number": number, "seconds": seconds, "memory_bytes": memory_bytes}
