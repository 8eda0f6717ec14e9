"""A data file that is read as it was hashed: each block is compared with the hash that it had then."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aegis.errors import DataError

_BLOCK_BYTES = 1 << 20


class Hashes(NamedTuple):
    """The SHA-256 of a file in hexadecimal, and a hash of each of its blocks."""

    sha256: str
    blocks: tuple[str, ...]


@dataclass(frozen=True)
class DataFile:
    """A data file; with `blocks`, a read raises an error if the bytes are not those that were hashed."""

    path: Path
    blocks: Sequence[str] | None = None

    def hashes(self) -> Hashes:
        """Read and hash the file once."""
        complete, blocks = hashlib.sha256(), []
        with self.path.open("rb", buffering=0) as file:
            while block := _filled(file):
                complete.update(block)
                blocks.append(_hash(block))
        return Hashes(complete.hexdigest(), tuple(blocks))

    def open(self) -> io.RawIOBase:
        """Open the file for reading.

        Raises:
            DataError: from the reads, if the file is not as it was hashed.
        """
        file = self.path.open("rb", buffering=0)
        return file if self.blocks is None else _Checked(file, self.path, self.blocks)


class _Checked(io.RawIOBase):
    """A file of which no byte is handed out before its block was compared."""

    def __init__(self, file: io.FileIO, path: Path, blocks: Sequence[str]) -> None:
        self._file, self._path, self._blocks = file, path, blocks
        self._at, self._number, self._block = 0, -1, b""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = (0, self._at, self._file.seek(0, io.SEEK_END) if whence == io.SEEK_END else 0)[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        number, start = divmod(self._at, _BLOCK_BYTES)
        if number != self._number:
            self._number, self._block = number, self._checked(number)
        view = memoryview(buffer).cast("B")
        piece = self._block[start : start + len(view)]
        view[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _checked(self, number: int) -> bytes:
        self._file.seek(number * _BLOCK_BYTES)
        block = _filled(self._file)
        expected = self._blocks[number] if number < len(self._blocks) else _hash(b"")
        if _hash(block) != expected:
            raise DataError("dataset.changed", name=self._path)
        return block


def _filled(file: io.FileIO) -> bytes:
    """Read a block; it is shorter only at the file's end."""
    block = file.read(_BLOCK_BYTES)
    while 0 < len(block) < _BLOCK_BYTES and (more := file.read(_BLOCK_BYTES - len(block))):
        block += more
    return block


def _hash(block: bytes) -> str:
    return hashlib.blake2b(block, digest_size=16).hexdigest()
