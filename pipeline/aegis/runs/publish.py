"""Publishes a directory: it appears under its final name by one rename, complete with its manifest, or not at all."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.errors import UsageError, reason
from aegis.messages import phrase
from aegis.runs import disk, known_hashes
from aegis.runs.foreign import refuse_foreign
from aegis.runs.lock import check_held
from aegis.runs.manifest import FORMAT, MANIFEST, VERSION, FileRecord, Manifest, file_sha256, hashing, versions


@contextmanager
def publishing(final: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[Staging]:
    """Yield a directory beside `final` to fill; if the block succeeds, seal it and rename it to `final`.

    `Staging.hashed` takes hashes that were computed while files were written; the other files are hashed here. On any
    exception the staging directory is removed and `final` stays as it was.

    Raises:
        UsageError: `final` exists and `overwrite` is not set, or its parent is not writable.
        EnvironmentFault: the disk is full.
        LockedError: the run around it was this process's and is not any more.
    """
    final = _named(final)
    check_held(final)
    refuse_existing(final, overwrite=overwrite)
    directory = final.with_name(f".{final.name}.staging-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        discard_leftovers(final)
        directory.mkdir()
    except OSError as error:
        if disk.is_full(error):
            raise disk.full(final, error) from error
        raise UsageError("publish.not_writable", final=final, error=reason(error)) from None
    staging = Staging(directory)
    try:
        yield staging
        staging.seal(manifest)
        check_held(final)
        _replace_directory(directory, final)
    except Exception as error:
        if disk.is_full(error):
            raise disk.full(final, error) from error
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_existing(final: Path, *, overwrite: bool) -> None:
    """Refuse to replace an existing `final` without `overwrite`, before any work is done.

    Raises:
        UsageError: it exists, it is not a directory, it has files that AEGIS did not write, or its name cannot be used.
    """
    final = _named(final)
    try:
        exists = final.exists()
    except OSError as error:  # the name is too long, or the parent cannot be entered
        raise UsageError("publish.not_writable", final=final, error=reason(error)) from None
    if exists and not final.is_dir():
        raise UsageError("publish.not_a_directory", final=final)
    if exists and not overwrite:
        raise UsageError("publish.exists", final=final)
    refuse_foreign(final)


def _named(final: Path) -> Path:
    """Return the path with its last name, which "." lacks: the folder that is being filled stands beside it."""
    final = final if final.name else final.resolve()
    if not final.name:
        raise UsageError("publish.not_writable", final=final, error=os.strerror(errno.EBUSY))
    return final


def discard_leftovers(final: Path) -> None:
    """Remove what a killed process left beside `final`; put back a directory that it moved away and did not replace."""
    name = glob.escape(final.name)
    trash = list(final.parent.glob(f".{name}.trash-*"))
    if trash and not final.exists():
        _rename(trash.pop(), final)
    for leftover in [*trash, *final.parent.glob(f".{name}.staging-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def discard(directory: Path) -> None:
    """Remove a published directory: rename it first, so that its name never shows an incomplete directory.

    If the process is killed after the rename, `discard_leftovers` and `sweep` remove the rest.

    Raises:
        UsageError: it has files that AEGIS did not write.
    """
    refuse_foreign(directory)
    if directory.exists():
        aside = directory.with_name(f".{directory.name}.staging-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        _rename(directory, aside)
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove incomplete directories that killed processes left in a folder of published directories.

    Use it only for a folder that no other process writes to: the staging directory of a live process looks the same.
    """
    for leftover in folder.glob(".*.staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class Staging:
    """A directory that is filled before it is published.

    Attributes:
        facts: if set, the manifest gets these instead of its own.
        inputs: further inputs for the manifest, which are known only while the directory is filled.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: Mapping[str, Any] | None = None
        self.inputs: dict[str, str] = {}
        self._hashed: dict[str, tuple[FileRecord, known_hashes.Identity]] = {}

    def hashed(self, name: str, size_bytes: int, sha256: str, seen: known_hashes.Identity | None = None) -> None:
        """Record a file's hash; if the file changes after that, it is hashed again.

        Args:
            seen: the file's identity before it was read; None if the hash was computed while the file was written,
                which is closed now.
        """
        self._hashed[name] = FileRecord(size_bytes, sha256), seen or known_hashes.identity(self.path / name)

    def take_over(self, file: Path) -> None:
        """Put an existing file into the directory, by a hard link if the disk supports it, else by a copy."""
        try:
            os.link(file, self.path / file.name)
        except OSError:
            shutil.copyfile(file, self.path / file.name)

    def seal(self, manifest: Manifest) -> None:
        """Flush every file to the disk, and write the manifest last."""
        paths = {p.relative_to(self.path).as_posix(): p for p in sorted(self.path.rglob("*")) if p.is_file()}
        unread = sum(path.stat().st_size for name, path in paths.items() if self._known(name) is None)
        with hashing(self.path.name.split(".staging")[0].lstrip("."), unread) as read:
            files = {name: self._record(name, path, read) for name, path in paths.items()}
        document = {
            "format": FORMAT,
            "version": VERSION,
            "stage": manifest.stage,
            "config": manifest.config,
            "inputs": {**manifest.inputs, **self.inputs},
            "facts": manifest.facts if self.facts is None else self.facts,
            "versions": versions(),
            "files": {name: vars(record) for name, record in files.items()},
        }
        path = self.path / MANIFEST
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _fsync(path)
        _fsync(self.path)

    def _known(self, name: str) -> FileRecord | None:
        """Return what was recorded about a file; None if nothing was, or if the file has changed since then."""
        record, seen = self._hashed.get(name, (None, None))
        return record if seen is not None and seen == known_hashes.identity(self.path / name) else None

    def _record(self, name: str, path: Path, read: Callable[[int], object] | None) -> FileRecord:
        """Flush a file, and return its size and hash."""
        _fsync(path)
        if (record := self._known(name)) is not None:
            known_hashes.note(path, "sha256", record.sha256, self._hashed[name][1])
            return record
        found = FileRecord(path.stat().st_size, file_sha256(path, read))
        if name in self._hashed and found != self._hashed[name][0]:
            progress.warn(phrase("publish.changed", name=name))
        return found


def _replace_directory(source: Path, final: Path) -> None:
    # a directory cannot replace one that is not empty: rename the old one first, and remove it after the new one is in
    # place
    trash = final.with_name(f".{final.name}.trash-{os.getpid()}")
    if final.exists():
        _rename(final, trash)
    try:
        _rename(source, final)
    except BaseException:
        if trash.exists():
            _rename(trash, final)
        raise
    try:
        _fsync(final.parent)
    finally:
        shutil.rmtree(trash, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    for attempt in range(10):
        try:
            source.replace(target)
        except PermissionError:
            # on Windows a virus scanner may hold a new file open for a moment
            if os.name != "nt" or attempt == 9:
                raise
            time.sleep(0.2)
        else:
            return


def _fsync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
