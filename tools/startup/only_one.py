"""One set-up at a time in one checkout: a file lock that the operating system drops when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from startup.console import clock, say
from startup.language import either

POLL_SECONDS = 0.5
REMINDER_SECONDS = 15.0

if sys.platform == "win32":
    import msvcrt

    # Windows forbids others to read a locked byte: lock one far behind the text that names the holder.
    _LOCKED_BYTE = 0x7FFF_0000

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
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
def only_one(path: Path) -> Iterator[int]:
    """Hold the lock at `path`, waiting aloud while another process has it; yield its file descriptor.

    On Linux and macOS the lock lives as long as any process has the descriptor open, so a uv that
    inherited it keeps it even when the script that started it was killed. The file itself stays: removing it
    would let two processes lock two different files of the same name.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _wait_for_lock(descriptor)
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, str(os.getpid()).encode("ascii"))
        yield descriptor
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int) -> None:
    started = time.monotonic()
    reminder = started
    while not _try_lock(descriptor):
        now = time.monotonic()
        if now >= reminder:
            os.lseek(descriptor, 0, os.SEEK_SET)
            holder = os.read(descriptor, 20).decode("ascii", "replace") or "unknown"
            waited = clock(now - started)
            say(
                either(
                    f"Another start.py (process {holder}), or the uv it left, is at work in this folder; waiting "
                    f"({waited}). Ctrl-C stops waiting.",
                    f"別の start.py（プロセス {holder}）またはその uv がこのフォルダで作業中です。待機中（{waited}）。"
                    "Ctrl-C で待機をやめます。",
                )
            )
            reminder = now + REMINDER_SECONDS
        time.sleep(POLL_SECONDS)
