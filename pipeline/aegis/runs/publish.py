"""A directory appears under its final name by one rename, whole and with its manifest, or not at all."""

from __future__ import annotations

import glob
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis.errors import UsageError
from aegis.runs import disk
from aegis.runs.manifest import FORMAT, MANIFEST, VERSION, FileRecord, Manifest, file_sha256, hashing, versions


@contextmanager
def publishing(final: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[Staging]:
    """Give a sibling directory to fill; when the block ends well, seal it and rename it to `final`.

    Files that were hashed while being written can be told to the `Staging`; the rest are hashed here. On any
    exception the staging directory is removed and `final` is as it was.

    Raises:
        UsageError: `final` exists and `overwrite` is not set, or nothing can be written beside it.
        EnvironmentFault: the disk is full.
    """
    refuse_existing(final, overwrite=overwrite)
    directory = final.with_name(f".{final.name}.staging-{os.getpid()}")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        discard_leftovers(final)
        directory.mkdir()
    except OSError as error:
        if disk.is_full(error):
            raise disk.full(final, error) from error
        raise UsageError("publish.not_writable", final=final, error=str(error)) from None
    staging = Staging(directory)
    try:
        yield staging
        staging.seal(manifest)
        _replace_directory(directory, final)
    except Exception as error:
        if disk.is_full(error):
            raise disk.full(final, error) from error
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_existing(final: Path, *, overwrite: bool) -> None:
    """Refuse to write where something stands, before any work is done."""
    try:
        stands = final.exists()
    except OSError as error:  # a name too long, a parent that may not be entered
        raise UsageError("publish.not_writable", final=final, error=str(error)) from None
    if stands and not final.is_dir():
        raise UsageError("publish.not_a_directory", final=final)
    if stands and not overwrite:
        raise UsageError("publish.exists", final=final)


def discard_leftovers(final: Path) -> None:
    """Remove what a killed process left beside `final`; what it had set aside and not replaced comes back."""
    name = glob.escape(final.name)
    trash = list(final.parent.glob(f".{name}.trash-*"))
    if trash and not final.exists():
        _rename(trash.pop(), final)
    for leftover in [*trash, *final.parent.glob(f".{name}.staging-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def discard(directory: Path) -> None:
    """Remove a published directory. It leaves its name by one rename, so that no part of it ever stands there.

    A process killed after the rename leaves it as `discard_leftovers` and `sweep` know it.
    """
    if directory.exists():
        aside = directory.with_name(f".{directory.name}.staging-{os.getpid()}")
        shutil.rmtree(aside, ignore_errors=True)
        _rename(directory, aside)
        shutil.rmtree(aside, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left half made, or half removed, in a folder of published directories.

    Only for a folder that nobody else writes to: the staging directory of a living process looks the same.
    """
    for leftover in folder.glob(".*.staging-*"):
        shutil.rmtree(leftover, ignore_errors=True)


class Staging:
    """A directory being filled.

    `inputs` that only show meanwhile go into its manifest too; `facts`, if set, in place of the manifest's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: Mapping[str, Any] | None = None
        self.inputs: dict[str, str] = {}
        self._hashed: dict[str, FileRecord] = {}

    def hashed(self, name: str, size_bytes: int, sha256: str) -> None:
        """Tell a file's hash that was computed while it was written."""
        self._hashed[name] = FileRecord(size_bytes, sha256)

    def seal(self, manifest: Manifest) -> None:
        """Flush every file to disk and write the manifest, last."""
        files = {}
        paths = {p.relative_to(self.path).as_posix(): p for p in sorted(self.path.rglob("*")) if p.is_file()}
        unread = sum(path.stat().st_size for name, path in paths.items() if name not in self._hashed)
        with hashing(self.path.name.split(".staging")[0].lstrip("."), unread) as read:
            for name, path in paths.items():
                _fsync(path)
                files[name] = self._hashed.get(name) or FileRecord(path.stat().st_size, file_sha256(path, read))
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


def _replace_directory(source: Path, final: Path) -> None:
    # a directory cannot be renamed onto a full one: the old one steps aside first, and goes once the new one stands
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
