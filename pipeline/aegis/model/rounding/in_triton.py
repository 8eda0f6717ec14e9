"""Rounds on a GPU with Triton's kernels. Import this module only where Triton is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aegis.model.rounding import k_quants_triton, legacy_quants_triton
from aegis.model.rounding.k_quants import SEARCHES

_TYPES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "Q4_0": (32, partial(legacy_quants_triton.round_by_peak, half=8)),
    "Q5_0": (32, partial(legacy_quants_triton.round_by_peak, half=16)),
    "Q8_0": (32, legacy_quants_triton.round_to_bytes),
    "Q4_K": (256, partial(k_quants_triton.round_with_offset, search=SEARCHES["Q4_K"])),
    "Q5_K": (256, partial(k_quants_triton.round_with_offset, search=SEARCHES["Q5_K"])),
    "Q6_K": (256, k_quants_triton.round_signed),
}

TRITON_TYPES = tuple(_TYPES)
"""The names of the types that have a kernel: those of Q4_K_M and Q5_K_M, and what their rows fall back to."""


def round_in_triton(values: Tensor, type_name: str) -> Tensor:
    """Return dequantize(quantize(values)): llama.cpp's values for blocks of 32, its error to 1 % for super-blocks.

    Args:
        values: (rows, columns) float32 on a GPU, finite.
        type_name: one of `TRITON_TYPES`.

    Returns:
        (rows, columns) float32 on the same GPU.
    """
    length, round_rows = _TYPES[type_name]
    assert values.shape[1] % length == 0, (values.shape, type_name)
    with torch.cuda.device_of(values):
        return round_rows(values.detach().contiguous())
