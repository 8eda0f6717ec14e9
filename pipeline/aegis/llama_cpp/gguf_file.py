"""Read a GGUF: its metadata, its tensors, and the tensors that did not get the type they were meant to."""

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
_MAX_CONTEXT = 4096
_NEVER_QUANTIZED = ("_norm.weight", "ffn_gate_inp.weight")


class GgufFile:
    """A GGUF file, mapped and not loaded: opening one of any size takes memory for its header only.

    Attributes:
        path: where it is.
        metadata: every key, in file order; arrays as lists.
        tensors: by name, in file order.
    """

    def __init__(self, path: Path) -> None:
        """Open and check it.

        Raises:
            UsageError: there is no such file, or it cannot be read.
            IntegrityError: it is no GGUF, damaged, or cut short.
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
        """One tensor's values, in its numpy shape.

        Returns:
            A read-only view of the file for the types numpy has (F32, F16, integers), valid after `close`
            too; a new float32 array, dequantized by PyPI's gguf, for all others.

        Raises:
            IntegrityError: the file has no such tensor, or its type cannot be dequantized.
        """
        return self._values(self._info(name), 0, None)

    def slabs(self, name: str, slab_bytes: int) -> Iterator[NDArray[np.generic]]:
        """One tensor's values as `tensor` gives them, some rows at a time: about `slab_bytes` of float32 each.

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
        """The bytes of rows [start, stop) as they stand in the file, (rows, bytes of one row).

        Read, not mapped: a map counts every page that was touched as this process's memory.

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
        """Entries [start, stop) of the first dimension."""
        assert self._data is not None, "the file is open"
        stop = info.shape[0] if stop is None else stop
        shape = (stop - start, *info.shape[1:])
        entry_bytes = info.size_bytes // info.shape[0]
        offset, size = info.offset_bytes + start * entry_bytes, (stop - start) * entry_bytes
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
        """Let go of the file. Views handed out keep their own hold on it."""
        data, self._data = self._data, None
        if data is not None:
            # while a view points into it, it cannot be closed; the last view to go unmaps it
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
    """The tokens of context a model is run with: what it was first trained for, 4096 at most.

    Beyond the original length of a LongRoPE model llama.cpp switches every token to the long factors; beyond
    4096 the context of a small card's model takes memory for nothing.

    Raises:
        IntegrityError: the file does not say.
    """
    with GgufFile(path) as file:
        family = file.metadata.get("general.architecture")
        for key in (f"{family}.rope.scaling.original_context_length", f"{family}.context_length"):
            length = file.metadata.get(key)
            if isinstance(length, int) and length > 0:
                return min(length, _MAX_CONTEXT)
    raise IntegrityError("gguf_file.no_context_length", path=path)


def _block_size_of(quant: str) -> int:
    """How many weights a block of this quantization holds; mixtures are named after their type and a size."""
    for name in (quant, quant.rpartition("_")[0]):
        if name in GGMLQuantizationType.__members__:
            return block_size(name)
    return block_size("Q8_K")  # IQ2_M and its like mix types that all have the blocks of K-quants


def fallback_tensors(file: GgufFile, quant: str, *, output_tensor_type: str | None = None) -> list[TensorInfo]:
    """The weights of a quantized file that fell back to a type with smaller blocks than `quant`'s.

    llama.cpp does so, with only a line in its log, where a row is not a whole number of blocks (256 weights
    for K-quants): the file grows and is not what its name says.

    Args:
        file: what `quantize` wrote.
        quant: what it was asked for, as `parse_quant` returns it.
        output_tensor_type: as given to `quantize`; `output.weight` may then have that type.
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
