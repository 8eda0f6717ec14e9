"""manifest.json: what a published directory was made from, by what, and what its files must be.

safetensors and GGUF carry no checksum, so a flipped bit in either loads without a word; this is where it shows.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from aegis import __version__, progress
from aegis.errors import IntegrityError
from aegis.messages import Bilingual, bilingual, phrase

MANIFEST = "manifest.json"
FORMAT = "aegis-manifest"
VERSION = 1
_READ_BYTES = 1 << 24
_WORTH_A_BAR_BYTES = 1 << 28
"""About a quarter of a second."""
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "gguf", "llama-cpp-python")


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
        facts: what the stage found out and later stages rely on; read through `aegis.runs.facts` alone.
        files: relative path → size and hash.
        path: the file that was read, None for one that is being made.
    """

    stage: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    facts: Mapping[str, Any]
    files: Mapping[str, FileRecord] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)

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


def file_sha256(path: Path, read: Callable[[int], object] | None = None) -> str:
    """sha256 of a file's content; `read` is called with each block's bytes."""
    with path.open("rb") as file:
        if read is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            digest.update(block)
            read(len(block))
        return digest.hexdigest()


@contextmanager
def hashing(name: str, total_bytes: int) -> Iterator[Callable[[int], object] | None]:
    """A bar for the hashing of so many bytes, or None where they are too few to wait for."""
    if total_bytes < _WORTH_A_BAR_BYTES:
        yield None
        return
    with progress.task(phrase("manifest.hashing", name=name), total_bytes, "B") as bar:
        yield bar.advance


def read_manifest(directory: Path) -> Manifest:
    """Read a published directory's manifest.

    Raises:
        IntegrityError: there is none, or it is damaged.
    """
    path = directory / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT or document["version"] != VERSION:
            other = bilingual("manifest.version", format=document["format"], version=document["version"])
            raise IntegrityError("manifest.damaged", path=path, name="ValueError", error=other)
        return Manifest(
            stage=str(document["stage"]),
            config=dict(document["config"]),
            inputs={str(name): str(value) for name, value in document["inputs"].items()},
            facts=dict(document["facts"]),
            files={
                str(name): FileRecord(int(record["bytes"]), str(record["sha256"]))
                for name, record in document["files"].items()
            },
            versions=dict(document["versions"]),
            path=path,
        )
    except FileNotFoundError:
        raise IntegrityError("manifest.none", directory=directory, manifest=MANIFEST) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise IntegrityError("manifest.damaged", path=path, name=type(error).__name__, error=error) from None


def verify_directory(directory: Path) -> Manifest:
    """Check every file of a published directory against its manifest.

    Raises:
        IntegrityError: naming each file that is missing, of another size, or changed.
    """
    manifest = read_manifest(directory)
    wrong: list[Bilingual] = []
    with hashing(directory.name, sum(record.bytes for record in manifest.files.values())) as read:
        for name, record in manifest.files.items():
            path = directory / name
            if not path.is_file():
                wrong.append(bilingual("manifest.missing", name=name))
            elif (why := _difference(path, record, read)) is not None:
                wrong.append(why.after(f"{name}: "))
    if wrong:
        raise IntegrityError("manifest.folder_differs", directory=directory, wrong=Bilingual.joined("\n", wrong))
    return manifest


def verify_file(path: Path) -> bool:
    """Check one file of a published directory against the manifest beside it; False if there is none that knows it.

    Raises:
        IntegrityError: the file, or the manifest, is not what it was.
    """
    if not (path.parent / MANIFEST).is_file():
        return False
    record = read_manifest(path.parent).files.get(path.name)
    if record is not None and (why := _difference(path, record)) is not None:
        raise IntegrityError("manifest.file_differs", path=path, why=why)
    return record is not None


def _difference(path: Path, record: FileRecord, read: Callable[[int], object] | None = None) -> Bilingual | None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return bilingual("manifest.size", found=size, wanted=record.bytes)
        return None if file_sha256(path, read) == record.sha256 else bilingual("manifest.changed")
    except OSError as error:
        return Bilingual.same(str(error))


def finished(final: Path, manifest: Manifest) -> Manifest | None:
    """The manifest of `final` if it is whole and was made with these settings from these inputs, else None."""
    if not (final / MANIFEST).is_file():
        return None
    try:
        found = verify_directory(final)
    except IntegrityError as error:
        progress.warn(phrase("manifest.making_again", final_name=final.name, error_what=error.what))
        return None
    return found if found.identity == manifest.identity else None
