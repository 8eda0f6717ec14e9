"""The blocks of a quantized file's matrices that a training does not change: made once per base, kept in the cache.

A finish computes with them, and verify's trained model again. llama.cpp's quantizer takes half a minute for the 2.4
billion values of Phi-3.5-mini on 16 cores, so they are made in the background, long before the finish. The cache
holds those of one base; what cannot be kept, because the disk is full, is made when it is asked for.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aegis.background import Background
from aegis.llama_cpp import row_bytes, spared_threads
from aegis.model.base import Base
from aegis.model.k_quant_weights import quantize_blocks
from aegis.model.shards import TensorEntry
from aegis.runs import disk
from aegis.runs.manifest import digest
from aegis.vendored import vendor_llama_cpp

_FORMAT = "aegis-blocks 1"
_FOLDER = "blocks"
_PART = ".part"


def converted(values: Tensor, merged: torch.dtype) -> Tensor:
    """Return a merged weight's values as they are in the f16 file: the converter writes float16, whatever was merged.

    Args:
        values: in any dtype of a base, or float32.
        merged: the dtype of the merged folder.

    Returns:
        float32 of the same shape.
    """
    return values.to(merged).to(torch.float16).float()


class FileBlocks:
    """Blocks of weight matrices as llama.cpp's quantizer makes them without an importance matrix.

    Args:
        merged: the dtype of the merged folder that the file is made from.
    """

    def __init__(self, base: Base, merged: torch.dtype) -> None:
        self._merged = merged
        quantizer = vendor_llama_cpp.load_pin().sha256
        self.folder = disk.cache_place() / _FOLDER / digest([_FORMAT, quantizer, base.weights_hash, str(merged)])[:32]

    def read(self, entry: TensorEntry, type_name: str, threads: int | None = None) -> Tensor:
        """Return a matrix's blocks, from the cache if they are there; make and keep them otherwise.

        Args:
            type_name: a key of BLOCK_BYTES.
            threads: as many as torch's if None.

        Returns:
            (rows, bytes per row) uint8, on the CPU.
        """
        rows, columns = entry.shape
        shape, path = (rows, row_bytes(type_name, columns)), self._path(entry, type_name)
        try:
            if path.stat().st_size == shape[0] * shape[1]:
                return torch.from_numpy(np.fromfile(path, np.uint8).reshape(shape))
        except OSError:
            pass  # it is not there, or cannot be read
        blocks = quantize_blocks(converted(entry.read(), self._merged), type_name, threads)
        self._keep(path, blocks)
        return blocks

    def make(self, wanted: Sequence[tuple[TensorEntry, str]]) -> Background[None]:
        """Make in the background what is not in the cache; its `end` waits for the matrix at work."""
        stop, threads = threading.Event(), spared_threads()

        def work() -> None:
            self._drop_unused()
            for entry, type_name in wanted:
                if stop.is_set():
                    return
                if not self._path(entry, type_name).is_file():
                    self.read(entry, type_name, threads)

        return Background(work, stop)

    def _path(self, entry: TensorEntry, type_name: str) -> Path:
        return self.folder / f"{disk.file_stem(entry.name)}.{type_name}"

    def _keep(self, path: Path, blocks: Tensor) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{_PART}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                blocks.numpy().tofile(file)
                # a file that a power cut left with the right size and no content would be taken for the blocks
                os.fsync(file.fileno())
            part.replace(path)
        except OSError:
            with suppress(OSError):
                part.unlink()

    def _drop_unused(self) -> None:
        """Remove another base's blocks, and what a killed process left; who still uses them makes them again."""
        for path in self.folder.parent.glob("*"):
            if path != self.folder:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"*{_PART}"):
            path.unlink(missing_ok=True)
