"""Rounds to the types with one scale per block of 32 (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), in torch on any device.

The rules are those of quantize_row_*_ref in llama.cpp's ggml/src/ggml-quants.c, at the commit of vendor_llama_cpp. Only
values come back, so a code that a scale of 0 multiplies is not computed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.model.rounding.exact import number_over, over_number


def round_by_peak(x: Tensor, half: int) -> Tensor:
    """Round to Q4_0 (`half` 8) or Q5_0 (16): the value of largest magnitude, with its sign, becomes the code −half.

    Args:
        x: (blocks, 32) float32.

    Returns:
        (blocks, 32) float32.
    """
    peak = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    step, inverse = _stored(peak / -half)
    codes = (x * inverse + (half + 0.5)).trunc_().clamp_(max=2 * half - 1)
    return codes.sub_(half).mul_(step)


def round_by_range(x: Tensor, top: int) -> Tensor:
    """Round to Q4_1 (`top` 15) or Q5_1 (31): codes 0 to `top` from the smallest value to the largest.

    Args:
        x: (blocks, 32) float32.

    Returns:
        (blocks, 32) float32.
    """
    low, high = x.aminmax(dim=-1, keepdim=True)
    step, inverse = _stored(over_number(high - low, top))
    codes = ((x - low) * inverse + 0.5).trunc_().clamp_(max=top)
    return codes.mul_(step).add_(low.half().float())


def round_to_bytes(x: Tensor) -> Tensor:
    """Round to Q8_0: codes −127 to 127; one half is rounded away from zero.

    Args:
        x: (blocks, 32) float32.

    Returns:
        (blocks, 32) float32.
    """
    step, inverse = _stored(over_number(x.abs().amax(-1, keepdim=True), 127))
    scaled = x * inverse
    return torch.copysign((scaled.abs() + 0.5).floor_(), scaled).mul_(step)


def _stored(step: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step as float16 stores it, and 1 / the exact one: codes are made with it, values with the stored."""
    stored = step.half().float()
    return stored, torch.where(stored == 0, 0.0, number_over(1, step))
