"""Take the converter's files out of the sdist: every member is judged before one byte is written.

The archive is read once, as a stream. The wanted files (about 2 MB) are held in memory until the last member
has passed, so an archive that turns hostile at its end has still written nothing.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, BinaryIO, cast

from .errors import VendorError
from .pin import Pin, digest

MAX_ARCHIVE_BYTES = 1 << 29
"""Most that the whole archive may inflate to (the pinned one: 216 MB)."""

MAX_TREE_BYTES = 1 << 24
"""Most that the wanted files may hold together (the pinned ones: 2 MB)."""

MAX_MEMBERS = 20_000
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def read_tree(sdist: BinaryIO, pin: Pin) -> dict[str, bytes]:
    """The pinned files of the sdist, by their path inside the tree.

    Raises:
        VendorError: "archive" for a member that is a link, a device or leads outside, for an archive that
            inflates too far or is broken; "hash" if the files are not the pinned ones.
    """
    inflated = _Bounded(gzip.GzipFile(fileobj=sdist))
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=cast("IO[bytes]", inflated), mode="r|") as archive:
            for count, member in enumerate(archive):
                if count >= MAX_MEMBERS:
                    raise VendorError("archive.members", most=MAX_MEMBERS)
                _judge(member)
                path = pin.wanted(member.name) if member.isfile() else None
                if path is not None:
                    _take(archive, member, path, contents)
    except (tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile, OverflowError, ValueError) as error:
        raise VendorError("archive.unreadable", error=error) from error
    found = digest({path: hashlib.sha256(data).hexdigest() for path, data in contents.items()})
    if found != pin.tree_sha256:
        raise VendorError("hash.tree", files=len(contents), found=found, wanted=pin.tree_sha256)
    return contents


def write_tree(contents: Mapping[str, bytes], destination: Path) -> None:
    """Write the files below `destination`, an empty directory."""
    for path, data in contents.items():
        target = destination / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.write(data)


def _judge(member: tarfile.TarInfo) -> None:
    """Refuse what could land, or point, outside of the directory it is unpacked into."""
    name = member.name
    if not (member.isfile() or member.isdir()) or member.issparse():
        raise VendorError("archive.special", name=name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise VendorError("archive.absolute", name=name)
    if ".." in re.split(r"[/\\]", name) or "\0" in name:
        raise VendorError("archive.outside", name=name)


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, path: str, contents: dict[str, bytes]) -> None:
    # The judge lets odd but harmless names pass, since they stay in the archive. These are written, on
    # file systems that fold case, cut names at a colon or reserve them.
    if not all(_PLAIN_NAME.fullmatch(part) for part in path.split("/")):
        raise VendorError("archive.name", name=member.name)
    if path.casefold() in {known.casefold() for known in contents}:
        raise VendorError("archive.twice", name=member.name)
    if member.size + sum(map(len, contents.values())) > MAX_TREE_BYTES:
        raise VendorError("archive.size", most=MAX_TREE_BYTES)
    stream = archive.extractfile(member)
    assert stream is not None, "a plain file has contents"
    contents[path] = stream.read()


class _Bounded:
    """A stream that refuses to inflate without end."""

    def __init__(self, stream: gzip.GzipFile) -> None:
        self._stream = stream
        self._left_bytes = MAX_ARCHIVE_BYTES

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise VendorError("archive.bomb", most=MAX_ARCHIVE_BYTES)
        return data
