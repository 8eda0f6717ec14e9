"""Makes stdout and stderr survive a console without emoji, a closed pipe and a closed terminal."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any


class _Terminal(io.FileIO):
    """A terminal that ignores writes after its window or connection is closed."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return memoryview(data).nbytes


def prepare() -> None:
    """Make stdout and stderr accept any text, for as long as the command runs."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if os.name == "posix" and stream.isatty():
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(terminal, stream.encoding, "replace", line_buffering=True))
        else:
            # a cp932 console has no emoji; a question mark is better than a traceback
            stream.reconfigure(errors="replace")


def silence() -> None:
    """Redirect stdout and stderr to the null device, so that nothing is written, not even at interpreter exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())
