"""Reads a GGUF: its metadata, its tensors, and the tensors that fell back to another type."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from gguf import GGMLQuantizationType, dequantize
from numpy.typing import NDArray

from aegis.errors import IntegrityError, UsageError
from aegis.llama_cpp.gguf_header import DamagedGguf, TensorInfo, Value, block_size, read_header
from aegis.messages import Bilingual, bilingual

_PLAIN = {"F32": np.float32, "F16": np.float16, "F64": np.float64}
_INTEGERS = {"I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64}
MAX_CONTEXT = 4096
"""The most tokens that a model is run with: more would waste memory."""
_NEVER_QUANTIZED = ("_norm.weight", "ffn_gate_inp.weight")


class GgufFile:
    """A memory-mapped GGUF file: opening it takes memory for its header only.

    Attributes:
        path: the file's path.
        metadata: every key in the file's order; arrays are lists.
        tensors: by name, in the file's order.
    """

    def __init__(self, path: Path) -> None:
        """Open a file and check its header.

        Raises:
            UsageError: there is no such file, or it cannot be read.
            IntegrityError: it is not a GGUF, damaged, or cut off.
        """
        self.path = path
        try:
            with path.open("rb") as stream:
                empty = path.stat().st_size == 0
                data = None if empty else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UsageError("gguf_file.unreadable", path=path, error=str(error)) from error
        if data is None:
            raise self._damaged(bilingual("gguf_file.empty"))
        try:
            self.metadata, self.tensors = read_header(data)
        except DamagedGguf as error:
            data.close()
            raise self._damaged(error.what) from error
        self._data: mmap.mmap | None = data

    def tensor(self, name: str) -> NDArray[np.generic]:
        """Return one tensor's values in its numpy shape.

        Returns:
            For types that numpy has (F32, F16, integers), a read-only view of the file, which stays valid after
            `close`; for all others a new float32 array, dequantized by PyPI's gguf.

        Raises:
            IntegrityError: the file has no such tensor, or its type cannot be dequantized.
        """
        return self._values(self._info(name), 0, None)

    def slabs(self, name: str, slab_bytes: int) -> Iterator[NDArray[np.generic]]:
        """Yield one tensor's values as `tensor` does, in slabs of rows with about `slab_bytes` of float32.

        Raises:
            IntegrityError: the file has no such tensor, or its type cannot be dequantized.
        """
        info = self._info(name)
        rows = math.prod(info.shape[:-1])
        step = max(1, slab_bytes // (4 * info.shape[-1]))
        flat = replace(info, shape=(rows, info.shape[-1]))
        for start in range(0, rows, step):
            yield self._values(flat, start, min(start + step, rows))

    def raw_rows(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes of rows [start, stop) in the file, (rows, bytes per row) uint8.

        They are read, not mapped: every page of a map that was touched counts as this process's memory.

        Raises:
            IntegrityError: the file has no such tensor, or has become shorter.
        """
        info = self._info(name)
        size = info.size_bytes // info.rows
        raw = np.empty((stop - start, size), np.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(info.offset_bytes + start * size)
            view: memoryview = raw.reshape(-1).data
            while view:
                count = file.readinto(view)
                if not count:
                    raise IntegrityError("shards.ends_inside", file=self.path, name=name)
                view = view[count:]
        return raw

    def _info(self, name: str) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise IntegrityError("gguf_file.no_tensor", path=self.path, name=name)
        return info

    def _values(self, info: TensorInfo, start: int, stop: int | None) -> NDArray[np.generic]:
        """Return entries [start, stop) of the first dimension, or all."""
        assert self._data is not None, "the file is open"
        shape, offset, size = info.shape, info.offset_bytes, info.size_bytes
        if stop is not None:
            entry_bytes = size // shape[0]
            offset, size = offset + start * entry_bytes, (stop - start) * entry_bytes
            shape = (stop - start, *shape[1:])
        plain = (_PLAIN | _INTEGERS).get(info.type)
        if plain is not None:
            view: NDArray[np.generic] = np.frombuffer(self._data, plain, size // np.dtype(plain).itemsize, offset)
            return view.reshape(shape)
        raw = np.frombuffer(self._data, np.uint8, size, offset)
        try:
            values: NDArray[np.float32] = dequantize(raw.reshape(*shape[:-1], -1), GGMLQuantizationType[info.type])
        except NotImplementedError as error:
            raise IntegrityError(
                "gguf_file.unreadable_type", info_name=info.name, path=self.path, info_type=info.type
            ) from error
        return values

    def close(self) -> None:
        """Close the file; existing views stay valid."""
        data, self._data = self._data, None
        if data is not None:
            # a map with views cannot be closed; it is unmapped when the last view is gone
            with suppress(BufferError):
                data.close()

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _damaged(self, what: Bilingual) -> IntegrityError:
        return IntegrityError("gguf_file.not_whole", path=self.path, what=what.capitalised())


def trained_context(path: Path) -> int:
    """Return the context to run a model with, in tokens: its original context length, at most `MAX_CONTEXT`.

    Beyond the original length of a LongRoPE model, llama.cpp uses the long factors for every token.

    Raises:
        IntegrityError: the file has no context length.
    """
    with GgufFile(path) as file:
        family = file.metadata.get("general.architecture")
        for key in (f"{family}.rope.scaling.original_context_length", f"{family}.context_length"):
            length = file.metadata.get(key)
            if isinstance(length, int) and length > 0:
                return min(length, MAX_CONTEXT)
    raise IntegrityError("gguf_file.no_context_length", path=path)


def _block_size_of(quant: str) -> int:
    """Return the weights per block of a quantization; mixtures are named after their type and a size."""
    for name in (quant, quant.rpartition("_")[0]):
        if name in GGMLQuantizationType.__members__:
            return block_size(name)
    return block_size("Q8_K")  # IQ2_M and similar mixtures have only types with the blocks of K-quants


def fallback_tensors(file: GgufFile, quant: str, *, output_tensor_type: str | None = None) -> list[TensorInfo]:
    """Return the weights of a quantized file that fell back to a type with smaller blocks than `quant`'s.

    llama.cpp does so, with only a line in its log, if a row is not divisible into blocks (256 weights for K-quants).
    The file is then larger, and its name is wrong.

    Args:
        file: the output of `quantize`.
        quant: the requested type, as `parse_quant` returns it.
        output_tensor_type: the argument of `quantize`; `output.weight` may have this type.
    """
    wanted = _block_size_of(quant)
    chosen = output_tensor_type.upper() if output_tensor_type else None
    return [
        info
        for info in file.tensors.values()
        if len(info.shape) >= 2
        and info.name.endswith(".weight")
        and not info.name.endswith(_NEVER_QUANTIZED)
        and block_size(info.type) < wanted
        and not (info.name == "output.weight" and info.type == chosen)
    ]


__all__ = ["GgufFile", "TensorInfo", "Value", "fallback_tensors", "trained_context"]
