"""The memory of the base's weights in a finish, from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from aegis.model.k_quant_weights import BLOCK, BLOCK_BYTES
from aegis.model.shards import HEAD

_SOURCE_BYTES = 2
"""Bytes per weight in the base's shards, from which a weight that changes is rounded again."""


def finish_bytes(base: Any, types: Mapping[str, str], dtype: torch.dtype, *, hosted: bool, blocks: bool) -> int:
    """Return the bytes of all weights on the device, as `merging.shipped_weights` holds them.

    Args:
        base: the model with its adapter, on the meta device.
        types: see `FinishFacts.types`.
        dtype: the dtype that training computes in.
        hosted: whether the input embeddings are in the host's memory.
        blocks: whether weights that never change are held in blocks, as on a GPU.
    """
    width = dtype.itemsize
    total = 0
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
        elif blocks and kind in BLOCK_BYTES:
            total += size // BLOCK * BLOCK_BYTES[kind]
        else:
            total += size * width
    return total + sum(p.nbytes for p in base.parameters() if p.ndim == 1)
