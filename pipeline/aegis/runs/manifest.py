"""Reads and checks manifest.json: a published directory's stage, settings, inputs, and the hashes of its files.

safetensors and GGUF have no checksum, so a program loads a file with a flipped bit without an error; the hash shows it.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from aegis import __version__, progress
from aegis.background import two_at_a_time
from aegis.errors import IntegrityError, reason
from aegis.limits import RECORD_BYTES, read_json
from aegis.messages import Bilingual, bilingual, phrase
from aegis.runs import known_hashes
from aegis.runs.manifest_values import inside, mapping, refuse_unusable

MANIFEST = "manifest.json"
FORMAT = "aegis-manifest"
VERSION = 1
NOT_OURS = "manifest.not_ours"
"""The key of the error for a manifest.json that another program wrote."""
_READ_BYTES = 1 << 24
_WORTH_A_BAR_BYTES = 1 << 28
"""Hashing this much takes about a quarter of a second; less gets no progress bar."""
_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "gguf", "llama-cpp-python")


@dataclass(frozen=True)
class FileRecord:
    """The size and the sha256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        stage: the command that made the directory.
        config: its settings.
        inputs: name → hash of everything it was made from.
        facts: what the stage records for later stages; only `aegis.runs.facts` reads it.
        files: relative path → size and hash.
        versions: package → version.
        path: the file that was read; None for a new manifest.
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
        """A hash of stage, settings and inputs.

        Directories with equal identities may differ: another version of a package, of the converter or of the quantizer
        makes other bytes of the same inputs.
        """
        return digest({"stage": self.stage, "config": self.config, "inputs": self.inputs})

    @property
    def files_digest(self) -> str:
        """A hash of the names and contents of all files."""
        return digest({name: record.sha256 for name, record in self.files.items()})

    @property
    def exact_identity(self) -> str:
        """A hash of identity and files: where it is equal, settings, inputs and every byte of every file are."""
        return digest([self.identity, self.files_digest])


def versions() -> dict[str, str]:
    """Return the versions of all packages that can change a result."""
    found = {"aegis": __version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def digest(value: object) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_sha256(path: Path, read: Callable[[int], object] | None = None) -> str:
    """Return the sha256 of a file's content, or what `known_hashes` has of it.

    Args:
        read: is called with the number of bytes of each block.
    """
    seen = known_hashes.identity(path)
    if (known := known_hashes.noted(path, "sha256")) is not None:
        if read is not None:
            read(seen[2])
        return known
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            digest.update(block)
            if read is not None:
                read(len(block))
    known_hashes.note(path, "sha256", digest.hexdigest(), seen)
    return digest.hexdigest()


@contextmanager
def hashing(name: str, total_bytes: int) -> Iterator[Callable[[int], object] | None]:
    """Yield the function that advances a progress bar over `total_bytes`; None if they are too few for a bar."""
    if total_bytes < _WORTH_A_BAR_BYTES:
        yield None
        return
    with progress.task(phrase("manifest.hashing", name=name), total_bytes, "B") as bar:
        yield bar.advance


def read_manifest(directory: Path) -> Manifest:
    """Read a published directory's manifest.

    Raises:
        IntegrityError: there is none, it is damaged, of another version of AEGIS, or not one of AEGIS.
    """
    path = directory / MANIFEST
    try:
        document = read_json(path, RECORD_BYTES)
        refuse_unusable(document)
        if document.get("format") != FORMAT:
            raise IntegrityError(NOT_OURS, path=path)
        if document["version"] != VERSION:
            raise IntegrityError("manifest.other_version", path=path, version=document["version"], ours=VERSION)
        return Manifest(
            stage=str(document["stage"]),
            config=mapping(document, "config"),
            inputs={name: str(value) for name, value in mapping(document, "inputs").items()},
            facts=mapping(document, "facts"),
            files={inside(name): _record(record) for name, record in mapping(document, "files").items()},
            versions={name: str(value) for name, value in mapping(document, "versions").items()},
            path=path,
        )
    except FileNotFoundError:
        raise IntegrityError("manifest.none", directory=directory, manifest=MANIFEST) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError("manifest.damaged", path=path, name=type(error).__name__, error=error) from None


def _record(entry: Any) -> FileRecord:
    size_bytes, sha256 = entry["bytes"], entry["sha256"]
    if type(size_bytes) is not int or size_bytes < 0 or not isinstance(sha256, str):
        raise ValueError(entry)
    return FileRecord(size_bytes, sha256)


def verify_directory(directory: Path) -> Manifest:
    """Check every file of a published directory against its manifest.

    Raises:
        IntegrityError: a file is missing or changed; the message names each one.
    """
    manifest = read_manifest(directory)
    wrong: list[Bilingual] = []
    with hashing(directory.name, sum(record.bytes for record in manifest.files.values())) as read:
        checks = (partial(_wrong, directory, name, record, read) for name, record in manifest.files.items())
        wrong += [found for found in two_at_a_time(checks) if found is not None]
    if wrong:
        raise IntegrityError("manifest.folder_differs", directory=directory, wrong=Bilingual.joined("\n", wrong))
    return manifest


def verify_file(path: Path) -> bool:
    """Check one file against the manifest beside it; return False if there is no manifest or it does not list the file.

    Raises:
        IntegrityError: the file has changed, or the manifest is damaged.
    """
    if not (path.parent / MANIFEST).is_file():
        return False
    record = read_manifest(path.parent).files.get(path.name)
    if record is not None and (why := _difference(path, record)) is not None:
        raise IntegrityError("manifest.file_differs", path=path, why=why)
    return record is not None


def _wrong(directory: Path, name: str, record: FileRecord, read: Callable[[int], object] | None) -> Bilingual | None:
    try:
        is_there = (directory / name).is_file()
    except OSError as error:  # a name that no file of this disk can have
        return Bilingual.same(f"{name}: {reason(error)}")
    if not is_there:
        return bilingual("manifest.missing", name=name)
    why = _difference(directory / name, record, read)
    return None if why is None else why.after(f"{name}: ")


def _difference(path: Path, record: FileRecord, read: Callable[[int], object] | None = None) -> Bilingual | None:
    try:
        size = path.stat().st_size
        if size != record.bytes:
            return bilingual("manifest.size", found=size, wanted=record.bytes)
        return None if file_sha256(path, read) == record.sha256 else bilingual("manifest.changed")
    except OSError as error:
        return Bilingual.same(str(error))


def finished(final: Path, manifest: Manifest) -> Manifest | None:
    """Return the manifest of `final` if it is undamaged and has the same settings and inputs, else None."""
    if not (final / MANIFEST).is_file():
        return None
    try:
        found = verify_directory(final)
    except IntegrityError as error:
        progress.warn(phrase("manifest.making_again", final_name=final.name, error_what=error.what))
        return None
    return found if found.identity == manifest.identity else None
