"""A file's bytes, unpacked on the way where it is gzip or Zstandard."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from aegis.errors import DataError

PACKED = (".gz", ".zst")
"""Endings that may follow that of a text file."""

_BUFFER_BYTES = 1 << 17


class Stream(NamedTuple):
    """`place`: how much of the file on the disk has been read, in bytes. `file` can peek."""

    file: io.BufferedReader[Any]
    place: Callable[[], int]


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a file, unpacked; only what a buffer holds is in memory.

    Raises:
        DataError: in the reading, the packed file is damaged or ends too soon.
    """
    with io.BufferedReader(path.open("rb", buffering=0), _BUFFER_BYTES) as raw:
        if path.suffix.lower() not in PACKED:
            yield Stream(raw, raw.tell)
            return
        try:
            with io.BufferedReader(_unpacked(path, raw), _BUFFER_BYTES) as file:
                yield Stream(file, raw.tell)
        except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
            raise DataError("files.broken_archive", path=path, error=str(error)) from error


def _unpacked(path: Path, raw: io.BufferedReader[Any]) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.GzipFile(fileobj=raw)
    import pyarrow  # type: ignore[import-untyped]

    return pyarrow.CompressedInputStream(raw, "zstd")
