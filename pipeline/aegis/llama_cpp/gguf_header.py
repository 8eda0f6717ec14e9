"""Reads the header of a GGUF file, and checks every number before using it.

PyPI's GGUFReader makes several numpy views per string of a vocabulary (0.85 s and 85 MB for Phi-3's 32064 tokens), and
trusts the lengths in a damaged file. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from aegis.limits import GGUF_HEADER_BYTES, GGUF_ITEMS, GGUF_KEYS, GGUF_STRING_BYTES, GGUF_TENSORS
from aegis.messages import Bilingual, bilingual

Scalar = str | int | float | bool
Value = Scalar | list[Scalar]

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32
"""GGUF's default of general.alignment, in bytes."""


class DamagedGguf(ValueError):
    """The header is wrong; `what` says how, as a clause."""

    def __init__(self, what: Bilingual) -> None:
        super().__init__(what.shown)
        self.what = what


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's name, shape, type and place in the file.

    Attributes:
        shape: in numpy's order, rows first; GGUF stores it reversed.
        type: ggml's name, such as "F16" or "Q4_K".
        offset_bytes: offset from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset_bytes: int
    size_bytes: int

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def rows(self) -> int:
        """The number of rows, of all experts if there are any."""
        return math.prod(self.shape[:-1])


def read_header(data: mmap.mmap) -> tuple[dict[str, Value], dict[str, TensorInfo]]:
    """Return the metadata and tensors of a GGUF file, both in the file's order.

    Raises:
        DamagedGguf: it is not a GGUF, incomplete or inconsistent.
    """
    cursor = _Cursor(data)
    n_tensors, metadata = _read_metadata(cursor)
    declared = [_declaration(cursor) for _ in cursor.counted(n_tensors, GGUF_TENSORS)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise DamagedGguf(bilingual("gguf_header.alignment", alignment=alignment))
    start = aligned(cursor.position, alignment)
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for name, shape, kind, offset in declared:
        if name in tensors:
            raise DamagedGguf(bilingual("gguf_header.tensor_twice", name=name))
        if offset != expected:
            raise DamagedGguf(bilingual("gguf_header.offset", name=name, offset=offset, expected=expected))
        size = _size_bytes(name, shape, kind)
        if start + offset + size > len(data):
            raise DamagedGguf(
                bilingual("gguf_header.cut_off", data_count=len(data), name=name, start=start + offset + size)
            )
        tensors[name] = TensorInfo(name, shape, kind.name, start + offset, size)
        expected = aligned(offset + size, alignment)
    if len(data) > start + expected:
        raise DamagedGguf(bilingual("gguf_header.trailing_bytes", data_count=len(data) - start - expected))
    return metadata, tensors


def metadata_end(data: mmap.mmap) -> int:
    """Return the offset at which a GGUF file's metadata end and the declarations of its tensors begin.

    Raises:
        DamagedGguf: it is not a GGUF, incomplete or inconsistent.
    """
    cursor = _Cursor(data)
    _read_metadata(cursor)
    return cursor.position


def _read_metadata(cursor: _Cursor) -> tuple[int, dict[str, Value]]:
    """Return the number of tensors, and the metadata."""
    if cursor.take(4) != b"GGUF":
        raise DamagedGguf(bilingual("gguf_header.no_magic"))
    version = cursor.number("I")
    if version not in _VERSIONS:
        raise DamagedGguf(
            bilingual("gguf_header.unknown_version", version=version, known=", ".join(map(str, _VERSIONS)))
        )
    n_tensors, n_values = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Value] = {}
    for _ in cursor.counted(n_values, GGUF_KEYS):
        key = cursor.string()
        if key in metadata:
            raise DamagedGguf(bilingual("gguf_header.key_twice", key=key))
        metadata[key] = cursor.value(cursor.number("I"))
    return n_tensors, metadata


def block_size(type_name: str) -> int:
    """Return the weights per block of a ggml type (Q4_K: 256, Q8_0: 32, F16: 1)."""
    return int(GGML_QUANT_SIZES[GGMLQuantizationType[type_name]][0])


def _declaration(cursor: _Cursor) -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = cursor.string()
    n_dimensions = cursor.number("I")
    if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
        raise DamagedGguf(bilingual("gguf_header.dimensions", name=name, n_dimensions=n_dimensions))
    shape = tuple(cursor.number("Q") for _ in range(n_dimensions))[::-1]
    type_id = cursor.number("I")
    try:
        kind = GGMLQuantizationType(type_id)
    except ValueError:
        raise DamagedGguf(bilingual("gguf_header.unknown_type", name=name, type_id=type_id)) from None
    return name, shape, kind, cursor.number("Q")


def _size_bytes(name: str, shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    weights, block_bytes = GGML_QUANT_SIZES[kind]
    if not all(shape) or shape[-1] % weights:
        raise DamagedGguf(bilingual("gguf_header.shape_of_type", name=name, kind_name=kind.name, shape=shape))
    return math.prod(shape) // int(weights) * int(block_bytes)


def aligned(position: int, alignment: int = _ALIGNMENT) -> int:
    """Return the first multiple of `alignment` that is not before a position; GGUF's default if it is not given."""
    return -(-position // alignment) * alignment


class _Cursor:
    """Reads little-endian values one after the other from the start of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.position = 0
        self._data = data
        self._items = 0
        self._end = min(len(data), GGUF_HEADER_BYTES)

    def take(self, size: int) -> bytes:
        start, self.position = self.position, self.position + size
        if self.position > self._end:
            raise DamagedGguf(bilingual("gguf_header.header_cut_off", end=self._end))
        return self._data[start : self.position]

    def counted(self, count: int, max_count: int = GGUF_ITEMS) -> Iterator[int]:
        """`range(count)`, unless that is too many, or not even one byte for each item is left."""
        if count > min(max_count, self._end - self.position):
            raise DamagedGguf(bilingual("gguf_header.too_many_items", count=count, end=self._end - self.position))
        return iter(range(count))

    def number(self, code: str) -> int:
        value: int = struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]
        return value

    def string(self) -> str:
        size = self.number("Q")
        if size > GGUF_STRING_BYTES:
            raise DamagedGguf(bilingual("gguf_header.header_cut_off", end=self._end))
        return self.take(size).decode("utf-8", errors="replace")

    def value(self, type_id: int) -> Value:
        if type_id != _ARRAY:
            return self._scalars(type_id, 1)[0]
        item_type, count = self.number("I"), self.number("Q")
        self._items += count
        if self._items > GGUF_ITEMS:
            raise DamagedGguf(bilingual("gguf_header.huge_array", count=self._items))
        return self._scalars(item_type, count)

    def _scalars(self, type_id: int, count: int) -> list[Scalar]:
        if type_id == _STRING:
            return [self.string() for _ in self.counted(count)]
        code = _NUMBERS.get(type_id)
        if code is None:
            raise DamagedGguf(bilingual("gguf_header.unknown_value_type", type_id=type_id))
        return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code))))
