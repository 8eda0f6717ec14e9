"""Locks a run for one process, and checks that the lock is still its own: folder or lock file may be moved or removed.

A lock belongs to a file and not to its name: if run.lock is removed, another process can create and lock a new one.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import filelock

from aegis.errors import LockedError, UsageError, reason
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
        UsageError, EnvironmentFault: as `check_place`.
    """
    mine = _held.get(root.resolve())
    if mine is not None and mine.thread == threading.get_ident():
        yield
        return
    check_place(root)
    with _refusing(root, root):
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LockedError("runs.locked", root=root, holder=_holder(root)) from None
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


def check_place(root: Path) -> None:
    """Refuse a path where no run's directory can be made or written, before any work; the path stays as it is.

    Raises:
        UsageError: a file is in its place or in that of a folder above it, or nothing can be written there.
        EnvironmentFault: the disk is full.
    """
    for place in (root, *root.parents):
        with _refusing(root, place):
            if place.is_symlink() and not place.exists():
                raise FileNotFoundError(errno.ENOENT, phrase("runs.dangling"))
            try:
                mode = place.stat().st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue  # not made yet, or below a file
            if not stat.S_ISDIR(mode):
                raise UsageError("runs.file_in_the_way", root=root, place=place)
            # permissions alone are not enough: some file systems let nobody write
            tempfile.TemporaryFile(dir=place).close()
            return


@contextmanager
def _refusing(root: Path, place: Path) -> Iterator[None]:
    """Refuse a run's directory if the block cannot write in `place`."""
    try:
        yield
    except OSError as error:
        if disk.is_full(error):
            raise disk.full(root, error) from error
        raise UsageError("runs.unusable", root=root, place=place, error=reason(error)) from None


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
