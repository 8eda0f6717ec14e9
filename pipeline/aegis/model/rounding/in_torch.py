"""Rounds in torch on any device, slab by slab: where Triton is not installed, and for types that have no kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from aegis.model.rounding import k_quants, legacy_quants

_SLAB = 1 << 22
"""Values per slab; the search for scales holds about 12 tensors of them, 200 MiB."""


def _through(dtype: torch.dtype, x: Tensor) -> Tensor:
    return x.to(dtype).float()


_TYPES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "F32": (1, torch.clone),
    "F16": (1, partial(_through, torch.float16)),
    "BF16": (1, partial(_through, torch.bfloat16)),
    "Q4_0": (32, partial(legacy_quants.round_by_peak, half=8)),
    "Q4_1": (32, partial(legacy_quants.round_by_range, top=15)),
    "Q5_0": (32, partial(legacy_quants.round_by_peak, half=16)),
    "Q5_1": (32, partial(legacy_quants.round_by_range, top=31)),
    "Q8_0": (32, legacy_quants.round_to_bytes),
    "Q2_K": (256, k_quants.round_q2_k),
    "Q3_K": (256, k_quants.round_q3_k),
    "Q4_K": (256, k_quants.round_q4_k),
    "Q5_K": (256, k_quants.round_q5_k),
    "Q6_K": (256, k_quants.round_q6_k),
}

TORCH_TYPES = tuple(_TYPES)
"""The names of the types that can be rounded here."""


def round_in_torch(values: Tensor, type_name: str) -> Tensor:
    """Return dequantize(quantize(values)), with llama.cpp's error to 1 % and nearly all of its values.

    Args:
        values: (rows, columns) float32 on any device, finite.
        type_name: one of `TORCH_TYPES`.

    Returns:
        (rows, columns) float32 on the same device.
    """
    length, round_blocks = _TYPES[type_name]
    assert values.shape[1] % length == 0, (values.shape, type_name)
    given, out = values.detach().reshape(-1, length), torch.empty(values.shape, device=values.device)
    filled, step = out.view(-1, length), _SLAB // length
    for start in range(0, len(given), step):
        filled[start : start + step] = round_blocks(given[start : start + step])
    return out
