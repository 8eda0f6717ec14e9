"""Reads any rows of any tensor of safetensors files in bounded memory.

It uses plain reads: every page of a memory map that was touched would count as this process's memory.

The format: 8 bytes little-endian header length, a JSON header name → {dtype, shape, data_offsets}, then the data
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from aegis.errors import IntegrityError, UnsupportedModelError, UsageError
from aegis.limits import INDEX_BYTES, read_json
from aegis.messages import bilingual
from aegis.runs import named_paths

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HEAD = "lm_head.weight"
HEAD_BIAS = "lm_head.bias"

_MAX_SIZE = 1 << 48

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's file, dtype, shape, and the offset of its first byte in the file."""

    name: str
    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset_bytes: int

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def shape_of(self, start: int, stop: int) -> tuple[int, ...]:
        """Return the shape of rows [start, stop); a scalar is one row."""
        return stop - start, *self.shape[1:]

    def read(self, start: int = 0, stop: int | None = None, into: Tensor | None = None) -> Tensor:
        """Read rows [start, stop) of the first dimension.

        Args:
            into: a contiguous tensor of the rows' shape and dtype to fill and return; None allocates one.

        Raises:
            IntegrityError: the file is shorter than its header says.
        """
        stop = self.rows if stop is None else stop
        if into is None:
            into = torch.empty(self.shape_of(start, stop) if self.shape else (), dtype=self.dtype)
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset_bytes + start * (self.bytes // self.rows if self.rows else 0))
            view = raw_bytes(into)
            while view:
                count = file.readinto(view)
                if not count:
                    raise IntegrityError("shards.ends_inside", file=self.file, name=self.name)
                view = view[count:]
        return into

    def slabs(self, slab_bytes: int) -> Iterator[tuple[int, int]]:
        """Divide the first dimension into slabs, ranges [start, stop) of about `slab_bytes`."""
        if not self.shape:
            yield 0, 1
            return
        step = max(1, slab_bytes * self.rows // max(1, self.bytes))
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)


@dataclass(frozen=True)
class ShardSet:
    """All tensors of a model folder, each in exactly one file."""

    folder: Path
    files: tuple[Path, ...]
    entries: Mapping[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """Read the index and every header, but no tensor.

        Raises:
            UnsupportedModelError: there are no safetensors weights.
            IntegrityError: a file is missing or damaged, or the index and the files disagree.
        """
        weight_map = _read_index(folder)
        files = _shard_files(folder, weight_map)
        entries: dict[str, TensorEntry] = {}
        for file in files:
            for entry in read_header(file):
                if entry.name in entries:
                    raise IntegrityError(
                        "shards.two_files",
                        entry_name=entry.name,
                        name=entries[entry.name].file.name,
                        file_name=file.name,
                    )
                entries[entry.name] = entry
        lost = [name for name, file in weight_map.items() if name not in entries or entries[name].file.name != file]
        if lost:
            raise IntegrityError("shards.wrong_index", folder=folder, lost_count=len(lost), lost=", ".join(lost[:5]))
        return cls(folder, files, entries)

    def in_file(self, file: Path) -> list[TensorEntry]:
        """Return the tensors of one file in the order of their data."""
        return sorted((e for e in self.entries.values() if e.file == file), key=lambda e: (e.offset_bytes, e.name))

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())


def read_header(file: Path) -> list[TensorEntry]:
    """Return the tensors of one safetensors file.

    Raises:
        UsageError: there is no such file.
        IntegrityError: it is not a complete safetensors file (the safetensors library checks it).
        UnsupportedModelError: a tensor has an unknown dtype.
    """
    try:
        with file.open("rb") as handle:
            start = handle.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > INDEX_BYTES:
                key = "shards.too_short" if len(start) < 8 else "shards.no_header"
                raise IntegrityError("shards.not_whole", file=file, error=bilingual(key))
            with safe_open(file, "pt"):
                pass
            header = json.loads(handle.read(length))
    except FileNotFoundError:
        raise UsageError("shards.no_file", file=file) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise IntegrityError("shards.not_whole", file=file, error=str(error)) from None
    entries = []
    for name, record in header.items():
        if name == "__metadata__":
            continue
        if record["dtype"] not in DTYPES:
            raise UnsupportedModelError("shards.unknown_dtype", file=file, name=name, record=record["dtype"])
        if max(record["shape"], default=0) > _MAX_SIZE:  # possible without values, if another size is 0
            raise IntegrityError("shards.not_whole", file=file, error=f"{name}: {record['shape']}")
        entries.append(
            TensorEntry(
                name,
                file,
                DTYPES[record["dtype"]],
                tuple(record["shape"]),
                8 + length + record["data_offsets"][0],
            )
        )
    return entries


def _read_index(folder: Path) -> dict[str, str]:
    """Return the index's map from tensor to shard; empty if there is no index."""
    index = folder / INDEX
    if not index.is_file():
        return {}
    try:
        listed = read_json(index, INDEX_BYTES)["weight_map"]
        weight_map = {str(tensor): str(name) for tensor, name in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise IntegrityError("shards.damaged", index=index, name=type(error).__name__, error=error) from None
    if not weight_map:
        raise IntegrityError("shards.names_no_tensors", index=index)
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise IntegrityError("shards.foreign_name", index=index, name=name)
    return weight_map


def _shard_files(folder: Path, weight_map: Mapping[str, str]) -> tuple[Path, ...]:
    single = (folder / SINGLE).is_file()
    names = sorted(set(weight_map.values()))
    if single and names and names != [SINGLE]:
        # transformers would train on the single file, and this program would merge the shards
        raise IntegrityError("shards.both_kinds", folder=folder, single=SINGLE)
    if names:
        if missing := [name for name in names if not named_paths.is_file(folder / name)]:
            raise IntegrityError("shards.missing", folder=folder, missing=", ".join(missing))
        return tuple(folder / name for name in names)
    if single:
        return (folder / SINGLE,)
    pickles = [path.name for path in [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]]
    raise UnsupportedModelError(
        "shards.none",
        folder=folder,
        pickles=bilingual("shards.pickles", names=", ".join(sorted(pickles)[:3])) if pickles else "",
    )


def raw_bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor, to read or to fill."""
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)
