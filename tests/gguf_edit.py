"""Takes a GGUF apart and writes it again, so that a test can change one thing and keep every other byte.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ALIGNMENT = 32


class GgufEdit:
    """The parts of one file, which a test may change.

    Attributes:
        keys: key → [type id, value]; an array's type id is (9, item's).
        tensors: name → [shape as numpy's, ggml type id, bytes].
    """

    def __init__(self, path: Path) -> None:
        self._data, self._at = path.read_bytes(), 4
        assert self._data[:4] == b"GGUF"
        self.version = self._number("I")
        n_tensors, n_keys = self._number("Q"), self._number("Q")
        self.keys: dict[str, list[Any]] = {}
        for _ in range(n_keys):
            key = self._string()
            kind: Any = self._number("I")
            if kind == _ARRAY:
                kind = (_ARRAY, self._number("I"))
                self.keys[key] = [kind, [self._scalar(kind[1]) for _ in range(self._number("Q"))]]
            else:
                self.keys[key] = [kind, self._scalar(kind)]
        declared = []
        for _ in range(n_tensors):
            name, dimensions = self._string(), self._number("I")
            shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
            declared.append((name, shape, self._number("I"), self._number("Q")))
        start = -(-self._at // _ALIGNMENT) * _ALIGNMENT
        self.tensors: dict[str, list[Any]] = {}
        for name, shape, kind, offset in declared:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            length = math.prod(shape) // block * size
            self.tensors[name] = [shape, kind, bytearray(self._data[start + offset :][:length])]

    def __getitem__(self, key: str) -> Any:
        return self.keys[key][1]

    def __setitem__(self, key: str, value: Any) -> None:
        self.keys[key][1] = value

    def rows(self, name: str) -> Any:
        """Return a tensor's bytes, (rows, bytes of one row), to be changed in place."""
        shape, _, data = self.tensors[name]
        return np.frombuffer(data, np.uint8).reshape(math.prod(shape[:-1]), -1)

    def values(self, name: str, dtype: Any = np.float16) -> Any:
        """Return a plain tensor's values, to be changed in place."""
        shape, _, data = self.tensors[name]
        return np.frombuffer(data, dtype).reshape(shape)

    def save(self, path: Path) -> None:
        """Write the parts to a new file at `path`; an existing one may be a hard link to another run's."""
        parts = [b"GGUF", struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))]
        for key, (kind, value) in self.keys.items():
            parts.append(_text(key))
            if isinstance(kind, tuple):
                parts.append(struct.pack("<IIQ", kind[0], kind[1], len(value)))
                parts += [_packed(kind[1], item) for item in value]
            else:
                parts += [struct.pack("<I", kind), _packed(kind, value)]
        offset = 0
        for name, (shape, kind, data) in self.tensors.items():
            dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
            parts += [_text(name), dimensions, struct.pack("<IQ", kind, offset)]
            offset += -(-len(data) // _ALIGNMENT) * _ALIGNMENT
        header = b"".join(parts)
        blocks = [header, bytes(-len(header) % _ALIGNMENT)]
        for _, _, data in self.tensors.values():
            blocks += [bytes(data), bytes(-len(data) % _ALIGNMENT)]
        path.unlink(missing_ok=True)
        path.write_bytes(b"".join(blocks))

    def _number(self, code: str) -> Any:
        size = struct.calcsize(code)
        value = struct.unpack("<" + code, self._data[self._at : self._at + size])[0]
        self._at += size
        return value

    def _string(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode("utf-8", errors="surrogateescape")

    def _scalar(self, kind: int) -> Any:
        return self._string() if kind == _STRING else self._number(_CODES[kind])


Edit = Callable[[GgufEdit], None]


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _packed(kind: int, value: Any) -> bytes:
    return _text(value) if kind == _STRING else struct.pack("<" + _CODES[kind], value)
