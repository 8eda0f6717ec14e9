"""One set-up at a time in one checkout: a file lock that the operating system drops when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from startup.console import say
from startup.language import either

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: go on, rather than refuse to work there
            return True
        return True


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock at `path`; say that we wait while another process has it.

    On Linux and macOS the lock lives as long as any process has the file open, so a uv that inherited it keeps it
    even when the script that started it was killed. The file itself stays: removing it would let two processes lock
    two different files of the same name.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    try:
        if not _try_lock(descriptor):
            say(
                either(
                    "Another start.py, or the uv it left, is at work in this folder; waiting. Ctrl-C stops waiting.",
                    "別の start.py またはその uv がこのフォルダで作業中です。待機中。Ctrl-C で待機をやめます。",
                )
            )
            while not _try_lock(descriptor):
                time.sleep(0.5)
        yield
    finally:
        os.close(descriptor)
