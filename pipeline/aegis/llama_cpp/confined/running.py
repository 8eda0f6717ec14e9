"""One confined process from start to end: its requests, its answers, and how it ended."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import IO

from aegis import errors
from aegis.llama_cpp.confined import frames
from aegis.llama_cpp.confined.frames import Message
from aegis.llama_cpp.confined.limits import private_bytes
from aegis.llama_cpp.process import OWN_GROUP
from aegis.messages.safe import printable

_WORKER = Path(__file__).with_name("_worker.py")
_IMPORT_FROM = Path(__file__).parents[3]
_LOOK_SECONDS = 0.1
_KEPT_LINES, _LINE_CHARS = 20, 400
_WAITING_ANSWERS = 4
"""Answers that wait to be read; the process writes no more until one is."""


class Overdue(TimeoutError):
    """The process did not answer in time, and has been killed."""


class TooLarge(MemoryError):
    """An answer would have exceeded its memory bound."""


class Ended(RuntimeError):
    """The process ended by itself before it answered; the text has its signal or exit code and its last lines."""


class Failed(RuntimeError):
    """The request raised an exception: `kind` is its class, `trace` its traceback."""

    def __init__(self, kind: str, text: str, trace: str) -> None:
        super().__init__(text)
        self.kind = kind
        self.trace = trace


class Running:
    """One process from its start to its end."""

    def __init__(self, module: str) -> None:
        self.owner = os.getpid()
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-B", str(_WORKER), str(_IMPORT_FROM), module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUTF8": "1"},
            **OWN_GROUP,
        )
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        assert self.child.stderr is not None
        self._requests = self.child.stdin
        self._sending = threading.Lock()
        self._answers: queue.Queue[Message | None] = queue.Queue(_WAITING_ANSWERS)
        self._last_lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._printing = threading.Thread(target=_keep_lines, args=(self.child.stderr, self._last_lines), daemon=True)
        self._printing.start()
        self._over = over = threading.Event()
        threading.Thread(target=_hand_over, args=(self.child.stdout, self._answers, over), daemon=True).start()
        # without a reference to this object, which would keep it alive
        self._end = weakref.finalize(self, _end, self.child, self.owner, over)

    @property
    def is_alive(self) -> bool:
        return self.child.poll() is None

    def send(self, message: Message) -> None:
        # a process that has ended is noticed when its answer is read; two threads may send, each a whole message
        with self._sending, suppress(OSError):
            frames.write(self._requests, message)

    def takes_up(self, seconds: float) -> bool:
        """Wait until the process accepts the request; return False if it had ended before."""
        try:
            self._next(seconds, None)
        except Ended:
            return False
        return True

    def answer(self, seconds: float, max_bytes: int | None) -> Message | None:
        """Return the next answer to the request, or None after the last.

        Args:
            seconds: its time limit.
            max_bytes: maximum memory of the process, as `private_bytes` counts it.

        Raises:
            Overdue, TooLarge, Ended, Failed: see there.
            AegisError: the module raised it.
        """
        message = self._next(seconds, max_bytes)
        while "under_way" in message.fields:
            message = self._next(seconds, max_bytes)
        fields = message.fields
        if "reply" in fields:
            return Message(fields["reply"], message.blob)
        if "too_large" in fields:
            raise TooLarge
        if "failed" in fields:
            raise Failed(fields["failed"], fields["text"], fields["trace"])
        if "error" in fields:
            raise getattr(errors, fields["error"])(fields["key"], **fields["values"])
        return None

    def tell_left(self, number: int) -> None:
        """Cancel the rest of the answers to the request with this number."""
        self.send(Message({"left": number}))

    def cancel(self, number: int, seconds: float) -> bool:
        """Cancel a request, wait until its answers end, and return whether the process is still usable."""
        self.tell_left(number)
        try:
            while self.answer(seconds, None) is not None:
                pass
        except (Failed, TooLarge, errors.AegisError):
            return True
        except (Overdue, Ended):
            return False
        return True

    def end(self) -> None:
        self._end()

    def _next(self, seconds: float, max_bytes: int | None) -> Message:
        waited = 0.0
        while True:
            began = time.monotonic()
            with suppress(queue.Empty):
                message = self._answers.get(timeout=min(_LOOK_SECONDS, max(0.0, seconds - waited)))
                if message is None:
                    self._answers.put(None)  # a second call finds the end too
                    raise Ended(self._how_it_ended())
                return message
            if self._over.is_set():
                raise Ended(self._how_it_ended())
            # the time of a machine that slept or of a stopped process does not count
            waited += min(time.monotonic() - began, 10 * _LOOK_SECONDS)
            if waited >= seconds:
                self.end()
                raise Overdue
            if max_bytes is not None and private_bytes(self.child.pid) > max_bytes:
                self.end()
                raise TooLarge

    def _how_it_ended(self) -> str:
        code = self.child.wait()
        self._printing.join(1.0)
        how = f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"
        return "\n".join((how, *self._last_lines))


def _hand_over(stream: IO[bytes], answers: queue.Queue[Message | None], over: threading.Event) -> None:
    """Put the answers into the queue, and None after the last; what nobody will read is dropped."""
    with stream:
        while (message := frames.read(stream)) is not None:
            _put(answers, message, over)
    _put(answers, None, over)


def _put(answers: queue.Queue[Message | None], message: Message | None, over: threading.Event) -> None:
    while not over.is_set():
        with suppress(queue.Full):
            answers.put(message, timeout=_LOOK_SECONDS)
            return


def _keep_lines(stream: IO[bytes], lines: deque[str]) -> None:
    with stream:
        while line := stream.readline(1 << 16):
            lines.append(printable(line.decode("utf-8", "replace").rstrip())[:_LINE_CHARS])


def _end(child: subprocess.Popen[bytes], owner: int, over: threading.Event) -> None:
    if os.getpid() != owner:
        return
    over.set()
    if child.poll() is None:
        child.kill()
        child.wait()
    if child.stdin is not None:
        with suppress(OSError):
            child.stdin.close()
