"""The space that the base's weights take in a finish, from shapes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from aegis.model.k_quant_weights import BLOCK, BLOCK_BYTES
from aegis.model.shards import HEAD

_SOURCE_BYTES = 2
"""Bytes per weight in the base's shards, from which a weight that changes is rounded again."""
_QUANTIZED_PER_SECOND = 6e6
"""Weights per core that llama.cpp's quantizer makes Q4_K blocks of (tools/README.md: 10.2 s per 10⁹ on 16 cores)."""


class FinishBytes(NamedTuple):
    """What a finish takes.

    Attributes:
        device: bytes of all weights on the device, as `merging.shipped_weights` holds them.
        blocks: of these, the bytes of blocks, which `merging.file_blocks` keeps on the disk too.
        quantized: number of weights that llama.cpp's quantizer makes these blocks of.
    """

    device: int
    blocks: int
    quantized: int


def finish_bytes(
    base: Any, types: Mapping[str, str], dtype: torch.dtype, *, hosted: bool, in_blocks: bool
) -> FinishBytes:
    """Count what a finish takes.

    Args:
        base: the model with its adapter, on the meta device.
        types: see `FinishFacts.types`.
        dtype: the dtype that training computes in.
        hosted: whether the input embeddings are in the host's memory.
        in_blocks: whether weights that never change are held in blocks, as on a GPU.
    """
    width = dtype.itemsize
    total = blocks = quantized = 0
    for name, kind in types.items():
        if name == HEAD:
            # the source, the base's own for kept text, and the rounded one
            total += base.get_output_embeddings().weight.numel() * (_SOURCE_BYTES + 2 * width)
            continue
        module = base.get_submodule(name.removesuffix(".weight"))
        if isinstance(module, nn.Embedding):
            total += 0 if hosted else module.weight.numel() * width
            continue
        size = module.in_features * module.out_features
        if hasattr(module, "base_layer"):
            total += size * (_SOURCE_BYTES + width)
        elif in_blocks and kind in BLOCK_BYTES:
            blocks += size // BLOCK * BLOCK_BYTES[kind]
            quantized += size
        else:
            total += size * width
    return FinishBytes(total + blocks + sum(p.nbytes for p in base.parameters() if p.ndim == 1), blocks, quantized)


@dataclass(frozen=True)
class FinishPlan:
    """What a finish adds to a training's time.

    Attributes:
        quant: the type of the file.
        quantized: number of weights that llama.cpp's quantizer rounds once.
        quantizing_seconds: the time of that on this machine's `cores`, from a rate that was measured elsewhere.
    """

    steps: int
    quant: str
    quantized: int
    quantizing_seconds: float
    cores: int

    @classmethod
    def of(cls, steps: int, quant: str, found: FinishBytes) -> FinishPlan:
        cores = os.cpu_count() or 1
        return cls(steps, quant, found.quantized, found.quantized / (_QUANTIZED_PER_SECOND * cores), cores)
