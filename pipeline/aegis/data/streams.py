"""Opens a file as a stream of bytes, and unpacks gzip and Zstandard."""

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
"""Suffixes that may follow the suffix of a text file."""

_BUFFER_BYTES = 1 << 17


class Stream(NamedTuple):
    """An open stream; `place` returns the number of bytes read from the file on the disk, and `file` can peek."""

    file: io.BufferedReader[Any]
    place: Callable[[], int]


@contextmanager
def open_stream(path: Path) -> Iterator[Stream]:
    """Open a file, unpacked; only one buffer of it is in memory.

    Raises:
        DataError: while reading, if the packed file is damaged or incomplete.
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
