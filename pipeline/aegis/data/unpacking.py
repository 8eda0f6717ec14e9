"""Opens a data file as a stream of bytes, and unpacks gzip and Zstandard, within bounds."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from aegis.data.data_file import DataFile
from aegis.errors import DataError
from aegis.limits import UNPACKED_BYTES, UNPACKED_FREE_BYTES, UNPACKED_GROWTH

PACKED = (".gz", ".zst")
"""Suffixes that may follow the suffix of a text file."""

_BUFFER_BYTES = 1 << 17


class Stream(NamedTuple):
    """An open stream; `place` returns the number of bytes read from the file on the disk, and `file` can peek."""

    file: io.BufferedReader[Any]
    place: Callable[[], int]


@contextmanager
def open_stream(data: DataFile) -> Iterator[Stream]:
    """Open a file, unpacked; only one buffer of it is in memory.

    Raises:
        DataError: while reading, if the packed file is damaged, incomplete, or unpacks to more than the limits; or if
            the file has changed since it was hashed.
    """
    path = data.path
    with io.BufferedReader(data.open(), _BUFFER_BYTES) as raw:
        if path.suffix.lower() not in PACKED:
            yield Stream(raw, raw.tell)
            return
        try:
            with io.BufferedReader(_Unpacked(data, raw), _BUFFER_BYTES) as file:
                yield Stream(file, raw.tell)
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise DataError("files.broken_archive", path=path, error=str(error)) from error


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, refused when they are more than the limits for the bytes that were read."""

    def __init__(self, data: DataFile, raw: io.BufferedReader[Any]) -> None:
        self._path, self._raw, self._count = data.path, raw, 0
        if data.path.suffix.lower() == ".gz":
            self._file: Any = gzip.GzipFile(fileobj=raw)
        else:
            import pyarrow  # type: ignore[import-untyped]

            self._file = pyarrow.CompressedInputStream(raw, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._file.read(len(view))
        view[: len(piece)] = piece
        self._count += len(piece)
        if self._count > min(UNPACKED_BYTES, UNPACKED_FREE_BYTES + UNPACKED_GROWTH * self._raw.tell()):
            raise DataError("files.unpacked_too_far", path=self._path, count=self._count / 1e9, read=self._raw.tell())
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()
