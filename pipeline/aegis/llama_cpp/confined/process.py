"""Ask a confined process: it is started when it is needed, killed when it is overdue, and started anew for the next.

A deadline inside one process does not hold while a call into C does not return: Python's lock is not given back, no
other thread runs, and Ctrl-C waits too. Whoever kills another process needs nothing of it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

from aegis.errors import AegisError
from aegis.llama_cpp.confined.frames import Message
from aegis.llama_cpp.confined.running import Failed, Running, TooLarge

_TRIES = 2
_START_SECONDS = 60.0
"""For a process to start, load its module and be set up, at least: nobody's input slows that down."""


class Confined:
    """A process that answers with `answers(message, caller)` of a module.

    Args:
        module: its name; `answers` takes a `Message` and a `Caller`, and yields `Message`s.
        setup: what each new process is asked first.
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
        """The one answer to a request; raises as `stream` does."""
        (answer,) = self.stream(fields, blob, seconds=seconds, memory_bytes=memory_bytes)
        return answer

    def stream(
        self, fields: dict[str, object], blob: bytes = b"", *, seconds: float, memory_bytes: int | None = None
    ) -> Iterator[Message]:
        """The answers to a request, one request after the other. A caller that stops early lets it be cancelled.

        Args:
            seconds: for each answer.
            memory_bytes: that it may take beyond what the process has.

        Raises:
            Overdue, TooLarge, Ended, Failed: as they say; the next request is answered all the same.
            AegisError: the one that was raised there.
        """
        with self._lock:
            self._number += 1
            request = Message(_envelope(fields, self._number, seconds, memory_bytes), blob)
            whole = False
            try:
                running = self._asked(request, seconds)
                while (answer := running.answer(seconds, memory_bytes)) is not None:
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
        """Tell the process, from any thread, that nobody wants the rest of what `stream` is giving out."""
        if running := self._running:
            running.tell_left(self._number)

    @property
    def pid(self) -> int | None:
        """The process's, if there is one."""
        return self._running.child.pid if self._running else None

    def start(self, seconds: float) -> None:
        """Start the process now, if there is none, and wait until it has been set up; raises as `stream` does."""
        with self._lock:
            self._started(seconds)

    def close(self) -> None:
        """End the process, if there is one."""
        if self._running:
            self._running.end()
            self._running = None

    def _asked(self, request: Message, seconds: float) -> Running:
        """A process that has taken up the request: one that has ended since the last is replaced."""
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
        # after a fork it is the parent's, whose answers would come here
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
    limits = {"seconds": seconds, "memory_bytes": memory_bytes}
    return {"request": fields, "number": number, "limits": limits}
