"""Stores windows in one file, atomically, and loads them with a check of the hash; the tokens stay on the disk.

The file has a line of JSON; the arrays of each part, as `numpy.save` writes them; the tokens of each part; and the
SHA-256 of all that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from aegis.data.packing import Windows
from aegis.data.tokens import CODE, TokenFile
from aegis.errors import EnvironmentFault
from aegis.runs import disk

FORMAT = "aegis-data 3"

_ARRAYS = ("first_token", "first_piece", "trained_per_window")
_DIGEST_BYTES = hashlib.sha256().digest_size
_BLOCK_TOKENS = 1 << 18


class _Hashing:
    """A file to write to that hashes what is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def store(path: Path, windows: Mapping[str, Windows], report: dict[str, Any]) -> None:
    """Write named windows and a JSON report to `path`.

    Raises:
        EnvironmentFault: the disk is full, or the folder is not writable.
    """
    try:
        with disk.building(path.parent) as place:
            write(place / path.name, windows, report)
            (place / path.name).replace(path)
    except OSError as error:
        raise EnvironmentFault("data_cache.not_kept", parent=path.parent, error=str(error)) from error


def write(path: Path, windows: Mapping[str, Windows], report: dict[str, Any]) -> None:
    """Write like `store`, to a new file in a folder that no other process uses.

    Raises:
        OSError: the disk is full.
    """
    with path.open("xb") as file:
        _write(file, windows, report)


def _write(file: IO[bytes], windows: Mapping[str, Windows], report: dict[str, Any]) -> None:
    shapes = {name: [part.max_length, part.pad_token_id, len(part.tokens)] for name, part in windows.items()}
    hashing = _Hashing(file)
    hashing.write(json.dumps({"format": FORMAT, "windows": shapes, "report": report}).encode() + b"\n")
    for part in windows.values():
        for array in _ARRAYS:
            np.save(hashing, getattr(part, array), allow_pickle=False)
    for part in windows.values():
        for start in range(0, len(part.tokens), _BLOCK_TOKENS):
            hashing.write(part.tokens.read(start, min(start + _BLOCK_TOKENS, len(part.tokens))).data)
    file.write(hashing.sha256.digest())


def load(path: Path) -> tuple[dict[str, Windows], dict[str, Any]] | None:
    """Read the output of `store`; None if the file is missing, or damaged, in which case it is removed."""
    if not path.is_file():
        return None
    with suppress(OSError, KeyError, ValueError), path.open("rb") as file:
        if _is_whole(file):
            return _read(path, file)
    path.unlink(missing_ok=True)
    return None


def _is_whole(file: IO[bytes]) -> bool:
    """Whether the file ends with the hash of the bytes before it; then go back to its start."""
    digest, last = hashlib.sha256(), b""
    while block := file.read(_BLOCK_TOKENS * CODE.itemsize):
        digest.update(last[:-_DIGEST_BYTES])
        last = last[-_DIGEST_BYTES:] + block
    digest.update(last[:-_DIGEST_BYTES])
    file.seek(0)
    return digest.digest() == last[-_DIGEST_BYTES:]


def _read(path: Path, file: IO[bytes]) -> tuple[dict[str, Windows], dict[str, Any]]:
    content = json.loads(file.readline())
    if content["format"] != FORMAT:
        raise ValueError(content["format"])
    arrays = {name: [np.load(file, allow_pickle=False) for _ in _ARRAYS] for name in content["windows"]}
    offset = file.tell()
    windows = {}
    for name, (max_length, pad_token_id, count) in content["windows"].items():
        tokens = TokenFile(path.open("rb", buffering=0), path.parent, offset, count)
        windows[name] = Windows(max_length, pad_token_id, tokens, *arrays[name])
        offset += count * CODE.itemsize
    return windows, content["report"]
