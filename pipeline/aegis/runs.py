"""A run: one directory that holds everything from checkpoints to GGUF.

    <run>/run.lock                     held while a stage works here
    <run>/checkpoints/step_000100/     what training can go on from
    <run>/metrics.jsonl                one row a logging step
    <run>/adapter/                     train's result: LoRA adapter and soul
    <run>/merged/                      merge's result: a stock model folder
    <run>/gguf/                        export's result: GGUF files and Modelfile

Every published directory carries manifest.json: who made it from what, and each file's size and sha256. A directory
appears under its final name by one rename, when it is whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from aegis import __version__, progress
from aegis.errors import EnvironmentFault, IntegrityError, LockedError, UsageError

MANIFEST = "manifest.json"
_LOCK = "run.lock"
_FORMAT = "aegis-manifest"
_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "gguf", "llama-cpp-python")


@dataclass(frozen=True)
class Run:
    """Names of the places in a run directory."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def merged(self) -> Path:
        return self.root / "merged"

    @property
    def gguf(self) -> Path:
        return self.root / "gguf"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for this process; the lock of a process that died is taken over.

        Raises:
            LockedError: another process works here.
            UsageError: the directory cannot be made or written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.root / _LOCK)
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LockedError(
                f"another aegis works in {self.root}{_holder(self.root)}",
                fix="wait for it to end, or choose another --run",
            ) from None
        except OSError as error:
            raise UsageError(f"{self.root} cannot be used as a run directory", why=str(error)) from None
        pid_file = self.root / "run.pid"
        try:
            pid_file.write_text(str(os.getpid()), encoding="ascii")
            yield
        finally:
            pid_file.unlink(missing_ok=True)
            lock.release()
            if [path.name for path in self.root.iterdir()] == [_LOCK]:
                # a stage that refused its input leaves no trace of having been asked
                (self.root / _LOCK).unlink(missing_ok=True)
                self.root.rmdir()


def _holder(root: Path) -> str:
    try:
        return f" (process {(root / 'run.pid').read_text(encoding='ascii')})"
    except OSError:
        return ""


@dataclass(frozen=True)
class FileRecord:
    """One file as the manifest knows it."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What manifest.json holds.

    Attributes:
        stage: the command that made the directory.
        config: the resolved settings it ran with.
        inputs: name → hash of everything it was made from.
        facts: what the stage found out and later stages lean on.
        files: relative path → size and hash.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    facts: Mapping[str, Any]
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """A hash of what was asked and from what: equal identities make equal directories."""
        return digest({"stage": self.stage, "config": self.config, "inputs": self.inputs})


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"aegis": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(value: object) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def publishing(final: Path, manifest: Manifest, *, overwrite: bool = False) -> Iterator[Staging]:
    """Give a sibling directory to fill; when the block ends well, seal it and rename it to `final`.

    Files that were hashed while being written can be told to the `Staging`; the rest are hashed here. On any
    exception the staging directory is removed and `final` is as it was.

    Raises:
        UsageError: `final` exists and `overwrite` is not set.
        EnvironmentFault: the disk is full.
    """
    refuse_existing(final, overwrite=overwrite)
    final.parent.mkdir(parents=True, exist_ok=True)
    discard_leftovers(final)
    directory = final.with_name(f".{final.name}.staging-{os.getpid()}")
    directory.mkdir()
    staging = Staging(directory)
    try:
        yield staging
        staging.seal(manifest)
        _replace_directory(directory, final)
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise disk_full(final, error) from error
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def refuse_existing(final: Path, *, overwrite: bool) -> None:
    """Refuse to write where something stands, before any work is done."""
    if final.exists() and not overwrite:
        raise UsageError(f"{final} exists", fix="choose another place, or say --overwrite to replace it")


def finished(final: Path, manifest: Manifest) -> Manifest | None:
    """The manifest of `final` if it is whole and was made with these settings from these inputs, else None."""
    if not (final / MANIFEST).is_file():
        return None
    try:
        found = verify_directory(final)
    except IntegrityError as error:
        progress.warn(f"making {final.name} again: {error.what}")
        return None
    return found if found.identity == manifest.identity else None


def discard_leftovers(final: Path) -> None:
    """Remove staging directories that a killed process left beside `final`."""
    for leftover in [
        *final.parent.glob(f".{final.name}.staging-*"),
        *final.parent.glob(f".{final.name}.trash-*"),
    ]:
        shutil.rmtree(leftover, ignore_errors=True)


class Staging:
    """A directory being filled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts: dict[str, Any] = {}
        self._hashed: dict[str, FileRecord] = {}

    def hashed(self, name: str, size_bytes: int, sha256: str) -> None:
        """Tell a file's hash that was computed while it was written."""
        self._hashed[name] = FileRecord(size_bytes, sha256)

    def seal(self, manifest: Manifest) -> None:
        """Flush every file to disk and write the manifest, last."""
        files = {}
        for path in sorted(p for p in self.path.rglob("*") if p.is_file()):
            name = path.relative_to(self.path).as_posix()
            _fsync(path)
            files[name] = self._hashed.get(name) or FileRecord(path.stat().st_size, file_sha256(path))
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "stage": manifest.stage,
            "config": manifest.config,
            "inputs": manifest.inputs,
            "facts": {**manifest.facts, **self.facts},
            "versions": versions(),
            "files": {name: vars(record) for name, record in files.items()},
        }
        path = self.path / MANIFEST
        path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        _fsync(path)
        _fsync(self.path)


def read_manifest(directory: Path) -> Manifest:
    """Read a published directory's manifest.

    Raises:
        IntegrityError: there is none, or it is damaged.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError(f"format {document['format']!r}, version {document['version']!r}")
        return Manifest(
            stage=str(document["stage"]),
            config=dict(document["config"]),
            inputs=dict(document["inputs"]),
            facts=dict(document["facts"]),
            files={
                str(name): FileRecord(int(record["bytes"]), str(record["sha256"]))
                for name, record in document["files"].items()
            },
            versions=dict(document["versions"]),
        )
    except FileNotFoundError:
        raise IntegrityError(
            f"{directory} has no {MANIFEST}", why="it was not published whole by this program"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{path} is damaged", why=f"{type(error).__name__}: {error}") from None


def verify_directory(directory: Path) -> Manifest:
    """Check every file of a published directory against its manifest.

    Raises:
        IntegrityError: naming each file that is missing, of another size, or changed.
    """
    manifest = read_manifest(directory)
    wrong = []
    for name, record in manifest.files.items():
        path = directory / name
        if not path.is_file():
            wrong.append(f"{name}: missing")
        elif path.stat().st_size != record.bytes:
            wrong.append(f"{name}: {path.stat().st_size} bytes, should be {record.bytes}")
        elif file_sha256(path) != record.sha256:
            wrong.append(f"{name}: its content changed")
    if wrong:
        raise IntegrityError(f"{directory} is not what its manifest says", why="\n".join(wrong))
    return manifest


_DISK_FULL = {28, 122}  # ENOSPC, EDQUOT


def disk_full(path: Path, error: BaseException) -> EnvironmentFault:
    """The error to raise when writing `path` met a full disk."""
    free = shutil.disk_usage(_existing(path)).free
    return EnvironmentFault(
        f"the disk is full: {path} could not be written",
        why=f"{human_bytes(free)} are free ({error})",
        fix="free some space and start again; nothing half-written was left",
    )


def require_space(path: Path, needed_bytes: int, purpose: str) -> None:
    """Refuse before the work starts if the disk cannot hold it.

    Raises:
        EnvironmentFault: with what is needed and what is free.
    """
    free = shutil.disk_usage(_existing(path)).free
    if free < needed_bytes:
        raise EnvironmentFault(
            f"not enough disk for {purpose}: {human_bytes(needed_bytes)} needed, {human_bytes(free)} free",
            fix=f"free some space on the disk of {_existing(path)}, or choose another one",
        )


def human_bytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _replace_directory(source: Path, final: Path) -> None:
    # a directory cannot be renamed onto a full one: the old one steps aside first, and goes once the new one stands
    trash = final.with_name(f".{final.name}.trash-{os.getpid()}")
    if final.exists():
        _rename(final, trash)
    _rename(source, final)
    _fsync(final.parent)
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
