"""Writes safetensors files in one pass and hashes every byte; the header comes first, since all shapes are known.

The format is described in `shards`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from aegis.model.shards import DTYPES, INDEX, raw_bytes

_FLUSH_BYTES = 64 << 20
_DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


class ShardWriter:
    """Writes one safetensors file from front to back; its size and sha256 are known when it is closed.

    `write` hashes and stores; threads can call `hash`, `store` and `flush` separately, each in the order of the data.

    Args:
        path: must not exist.
        tensors: (name, dtype, shape) in the order of their data.
    """

    def __init__(self, path: Path, tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, dtype, shape in tensors:
            start, end = end, end + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self._sha256 = hashlib.sha256()
        self._left = end
        self.path = path
        self.bytes = self._flushed = 0
        self._file = path.open("xb", buffering=0)
        start_of_file = memoryview(struct.pack("<Q", len(text)) + text)
        self._sha256.update(start_of_file)
        self._put(start_of_file)

    def write(self, rows: Tensor) -> None:
        """Append the next rows of the current tensor."""
        rows = rows.contiguous()
        self.hash(rows)
        self.store(rows)

    def hash(self, rows: Tensor) -> None:
        """Add contiguous rows to the file's hash."""
        self._sha256.update(raw_bytes(rows))

    def store(self, rows: Tensor) -> None:
        """Write contiguous rows."""
        raw = raw_bytes(rows)
        self._left -= raw.nbytes
        self._put(raw)

    def flush(self) -> None:
        """Flush to the disk if much was written since the last flush; so little is left for the end."""
        if self.bytes - self._flushed >= _FLUSH_BYTES:
            self._flushed = self.bytes
            os.fsync(self._file.fileno())

    def _put(self, view: memoryview) -> None:
        self.bytes += view.nbytes
        while view:
            view = view[self._file.write(view) :]

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                assert self._left == 0, f"{self.path}: {self._left} bytes were announced and not written"
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()


def write_index(folder: Path, weight_map: Mapping[str, str], total_bytes: int) -> None:
    """Write the index, which names each tensor's shard."""
    document = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
