"""Stores token ids and their loss mask on the disk, so that memory does not limit a data set's size."""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import weakref
from io import RawIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aegis.errors import EnvironmentFault
from aegis.messages import phrase

Codes = NDArray[np.int32]
"""Token ids; an id that is not trained is stored as its complement ~id, which is negative."""

CODE = np.dtype("<i4")

_PENDING_BYTES = 1 << 20


def encoded(ids: NDArray[np.int32], trained: NDArray[np.bool_]) -> Codes:
    """Encode ids and their mask in one array."""
    return np.where(trained, ids, ~ids)


def ids_of(codes: Codes) -> NDArray[np.int32]:
    """Return the ids, trained or not."""
    return np.where(codes < 0, ~codes, codes)


class TokenFile:
    """A file of codes, four bytes each, for appending and for reading ranges; several threads may read at once.

    The file is closed with the last reference.

    Args:
        file: open for reading, unbuffered, and for writing if codes are appended.
        folder: the file's folder, for messages.
        offset: bytes before the first code.
        count: number of existing codes.
    """

    def __init__(self, file: RawIOBase, folder: Path, offset: int = 0, count: int = 0) -> None:
        self._file = file
        self._folder = folder
        self._offset = offset
        self._count = count
        self._pending = bytearray()
        self._lock = threading.Lock()
        weakref.finalize(self, file.close)

    @classmethod
    def unnamed(cls, folder: Path | None = None) -> TokenFile:
        """Make a new file without a name, which disappears when it is closed or its process is killed.

        Args:
            folder: folder for the file; the system's temporary folder if None.

        Raises:
            EnvironmentFault: it cannot be created there.
        """
        folder = folder or Path(tempfile.gettempdir())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return cls(tempfile.TemporaryFile(dir=folder, buffering=0), folder)
        except OSError as error:
            raise _trouble(folder, error) from error

    def __len__(self) -> int:
        return self._count

    def append(self, codes: Codes) -> None:
        """Append codes.

        Raises:
            EnvironmentFault: the disk is full.
        """
        self._pending += codes.astype(CODE, copy=False).tobytes()
        self._count += len(codes)
        if len(self._pending) >= _PENDING_BYTES:
            self._flush()

    def read(self, start: int, stop: int) -> Codes:
        """Return codes [start, stop).

        Raises:
            EnvironmentFault: the disk is full when pending codes are written; or the file has become shorter.
        """
        read = bytearray((stop - start) * CODE.itemsize)
        view = memoryview(read)
        with self._lock:
            self._flush()
            try:
                self._file.seek(self._offset + start * CODE.itemsize)
                while view:
                    view = view[self._file.readinto(view) or _ended() :]
            except OSError as error:
                raise _trouble(self._folder, error) from error
        return np.frombuffer(read, CODE)

    def _flush(self) -> None:
        if not self._pending:
            return
        rest = memoryview(self._pending)
        try:
            self._file.seek(0, os.SEEK_END)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _trouble(self._folder, error) from error
        self._pending = bytearray()


def _ended() -> int:
    raise OSError(errno.EIO, phrase("tokens.ends_too_soon"))


def _trouble(folder: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault("tokens.disk", folder=folder, error=str(error))
