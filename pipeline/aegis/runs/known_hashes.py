"""Notes what this process has found out about a file, for as long as the file stays the same: nothing is hashed twice.

A file is the same while its device, inode, size, mtime and ctime are. Every write and every rename sets the ctime, and
no program can set it back: a change that restores size and mtime is noticed on Linux and macOS, and so is a copy put in
the file's place. Notes are kept only inside `trusting`, in memory: another process reads every file again.

What is trusted, then, and not read again: the disk (a bit that goes bad there, after the bytes were hashed on their way
to it), the machine's clock (who may set it back can set a ctime), and one tick of the file system's clock, 4 ms on
Linux, in which a second writer leaves the same ctime. Windows has no ctime: there a program that restores size and
mtime is not noticed. With `--paranoid` nothing is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Fact = Literal["sha256", "converted_from"]
"""The sha256 of the file; or the digest of the model folder that llama.cpp's converter made it from in this process."""

Identity = tuple[int, int, int, int, int]
_notes: dict[tuple[Identity, Fact], str] | None = None


@contextmanager
def trusting(*, paranoid: bool = False) -> Iterator[None]:
    """Keep notes while the block runs, together with those of a block around it; with `paranoid`, keep none."""
    global _notes
    outer = _notes
    _notes = None if paranoid else {} if outer is None else outer
    try:
        yield
    finally:
        _notes = outer


def identity(path: Path) -> Identity:
    """Return what shows that a file is the same; raises OSError if there is none."""
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def note(path: Path, fact: Fact, value: str, seen: Identity | None = None) -> None:
    """Note a fact about a file.

    Args:
        seen: its identity before it was read; nothing is noted if it has changed meanwhile.
    """
    if _notes is not None:
        now = identity(path)
        if seen is None or seen == now:
            _notes[now, fact] = value


def noted(path: Path, fact: Fact) -> str | None:
    """Return what was noted about a file; None if nothing was, or if it is another file now."""
    return None if _notes is None else _notes.get((identity(path), fact))
