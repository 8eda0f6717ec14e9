"""Locks a run for one process, and checks that the lock is still its own: folder or lock file may be moved or removed.

A lock belongs to a file and not to its name: if run.lock is removed, another process can create and lock a new one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import filelock

from aegis.errors import LockedError, UsageError
from aegis.messages import phrase
from aegis.runs import disk

LOCK, PID = "run.lock", "run.pid"


class _Held(NamedTuple):
    """A lock of this process: the identity of its file, and the thread that holds it."""

    identity: tuple[int, int]
    thread: int


_held: dict[Path, _Held] = {}


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock a run's directory for this process while the block runs; a dead process's lock does not count.

    A thread that has the lock already keeps it, so that a command can hold it over several stages that lock it.

    Raises:
        LockedError: another process or thread works in this run.
        UsageError: the directory cannot be created or written.
        EnvironmentFault: the disk is full.
    """
    mine = _held.get(root.resolve())
    if mine is not None and mine.thread == threading.get_ident():
        yield
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / LOCK)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise LockedError("runs.locked", root=root, holder=_holder(root)) from None
    except OSError as error:
        if disk.is_full(error):
            raise disk.full(root, error) from error
        raise UsageError("runs.unusable", root=root, error=str(error)) from None
    place = root.resolve()
    _held[place] = _Held(_identity(place), threading.get_ident())
    try:
        (root / PID).write_text(str(os.getpid()), encoding="ascii")
        yield
    finally:
        if _is_held(root):
            _leave(root, lock)
        else:
            lock.release()  # the folder that is there now is another process's
        del _held[place]


def check_held(path: Path) -> None:
    """Refuse to write a path in a run whose lock this process has lost.

    Raises:
        LockedError: run.lock does not exist or is another file.
    """
    place = path.resolve()
    for root, held in _held.items():
        if place.is_relative_to(root) and _identity(root) != held.identity:
            raise LockedError("runs.lost", root=root, lock=LOCK)


def _is_held(root: Path) -> bool:
    try:
        check_held(root)
    except LockedError:
        return False
    return True


def _leave(root: Path, lock: filelock.BaseFileLock) -> None:
    """Release the lock; a stage that refused its input leaves no empty run directory."""
    (root / PID).unlink(missing_ok=True)
    empty = {path.name for path in root.iterdir()} <= {LOCK}
    if empty and os.name != "nt":
        # remove it while this process holds it, so that it is not another's; Windows cannot remove a held file
        (root / LOCK).unlink(missing_ok=True)
    lock.release()
    if empty:
        with suppress(OSError):  # another process may have started a run here
            if os.name == "nt":
                (root / LOCK).unlink(missing_ok=True)
            root.rmdir()


def _holder(root: Path) -> str:
    try:
        return phrase("runs.holder", process=(root / PID).read_text(encoding="ascii"))
    except OSError:
        return ""


def _identity(root: Path) -> tuple[int, int]:
    try:
        known = (root / LOCK).stat()
    except OSError:
        return -1, -1
    return known.st_dev, known.st_ino
