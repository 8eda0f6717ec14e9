"""Makes stdout and stderr survive a console without emoji, a closed pipe, a closed terminal and a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from aegis.errors import EnvironmentFault

_STDERR = 2


class _Output(io.FileIO):
    """A stream's file. A terminal's writes are ignored after its window or connection is closed."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_terminal = self.isatty()  # a closed one no longer says so

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if error.errno == errno.EIO and self._is_terminal:
                return memoryview(data).nbytes
            silence(self.fileno())  # what waits in buffers would fail again, and at the interpreter's exit once more
            if self.fileno() == _STDERR:  # there is no other place to say so
                return memoryview(data).nbytes
            raise EnvironmentFault("ending.stdout", error=error.strerror) from error


def prepare() -> None:
    """Make stdout and stderr accept any text, for as long as the command runs."""
    _open_closed_ones()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):  # a test's
            continue
        if stream.isatty() and os.name != "posix":
            # a cp932 console has no emoji; a question mark is better than a traceback
            stream.reconfigure(errors="replace")
            continue
        file = io.BufferedWriter(_Output(descriptor))
        is_unbuffered = stream.isatty() or name == "stderr"
        setattr(sys, name, io.TextIOWrapper(file, stream.encoding, "replace", line_buffering=is_unbuffered))


def _open_closed_ones() -> None:
    """Put the null device where a stream was closed: the next file to be opened would get its number, and its text."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(descriptor, "r" if name == "stdin" else "w", encoding="utf-8", closefd=False))


def silence(*descriptors: int) -> None:
    """Redirect streams, stdout and stderr by default, to the null device: nothing is written, not even at the exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in descriptors or (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
