"""Checks that a run that this process has locked is still its own: its folder or lock file may be moved or removed.

A lock belongs to a file and not to its name: if run.lock is removed, another process can create and lock a new one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aegis.errors import LockedError

LOCK = "run.lock"
_held: dict[Path, tuple[int, int]] = {}


@contextmanager
def holding(root: Path) -> Iterator[None]:
    """Record the lock file of a run that has just been locked, while the block runs."""
    place = root.resolve()
    _held[place] = _identity(place)
    try:
        yield
    finally:
        del _held[place]


def check_held(path: Path) -> None:
    """Refuse to write a path in a run whose lock this process has lost.

    Raises:
        LockedError: run.lock does not exist or is another file.
    """
    place = path.resolve()
    for root, identity in _held.items():
        if place.is_relative_to(root) and _identity(root) != identity:
            raise LockedError("runs.lost", root=root, lock=LOCK)


def is_held(root: Path) -> bool:
    """Return whether a locked run is still this process's."""
    try:
        check_held(root)
    except LockedError:
        return False
    return True


def _identity(root: Path) -> tuple[int, int]:
    try:
        known = (root / LOCK).stat()
    except OSError:
        return -1, -1
    return known.st_dev, known.st_ino
