"""Rounds to the types with super-blocks of 256 values (Q2_K, Q3_K, Q4_K, Q5_K, Q6_K), in torch on any device.

The rules are those of quantize_row_*_K_ref in llama.cpp's ggml/src/ggml-quants.c, at the commit of vendor_llama_cpp. A
sub-block's scale is an integer times the super-block's, which is float16.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aegis.model.rounding.exact import first_peak, in_order, number_over, over_number, root
from aegis.model.rounding.scale_search import NO_SCALE, descended_scale, scale_and_offset, signed_scale


class Search(NamedTuple):
    """The search of a type with codes 0 to `top`: `trials` candidates from top + first, 0.1 apart."""

    top: int
    first: float
    trials: int

    @property
    def candidates(self) -> tuple[float, ...]:
        """The candidates, each in float32 as llama.cpp computes it."""
        trials = np.arange(self.trials, dtype=np.float32)
        return tuple((np.float32(self.first) + np.float32(0.1) * trials + np.float32(self.top)).tolist())


SEARCHES = {"Q2_K": Search(3, -0.5, 16), "Q4_K": Search(15, -1.0, 21), "Q5_K": Search(31, -0.5, 16)}
Q6_K_CANDIDATES = (32.0, *(float(np.float32(32) + np.float32(0.1) * np.float32(i)) for i in range(-9, 10) if i))


def round_q2_k(x: Tensor) -> Tensor:
    """Round to Q2_K: (super-blocks, 256) float32 to the same."""
    parts, search = _columns(x, 16), SEARCHES["Q2_K"]
    found = scale_and_offset(parts, parts.abs(), search.top, search.candidates, absolute=True)
    return _with_offset(parts, *found, search.top, 15)


def round_q3_k(x: Tensor) -> Tensor:
    """Round to Q3_K: (super-blocks, 256) float32 to the same."""
    parts = _columns(x, 16)
    return _signed(parts, descended_scale(parts, 4), 4, 32)


def round_q4_k(x: Tensor) -> Tensor:
    """Round to Q4_K: (super-blocks, 256) float32 to the same."""
    return _by_size(x, SEARCHES["Q4_K"])


def round_q5_k(x: Tensor) -> Tensor:
    """Round to Q5_K: (super-blocks, 256) float32 to the same."""
    return _by_size(x, SEARCHES["Q5_K"])


def round_q6_k(x: Tensor) -> Tensor:
    """Round to Q6_K: (super-blocks, 256) float32 to the same."""
    parts = _columns(x, 16)
    return _signed(parts, signed_scale(parts, 32, Q6_K_CANDIDATES), 32, 128)


def _columns(x: Tensor, length: int) -> Tensor:
    """Return the sub-blocks as columns: (length, sub-blocks)."""
    return x.reshape(-1, length).T.contiguous()


def _by_size(x: Tensor, search: Search) -> Tensor:
    """Weigh errors by a value's magnitude and the sub-block's root mean square together."""
    parts = _columns(x, 32)
    weights = root(in_order(parts.square()) / 32) + parts.abs()
    found = scale_and_offset(parts, weights, search.top, search.candidates, absolute=False)
    return _with_offset(parts, *found, search.top, 63)


def _with_offset(parts: Tensor, scale: Tensor, offset: Tensor, top: int, levels: int) -> Tensor:
    """Store scales and offsets as integers of 0 to `levels`, round to codes 0 to `top`, and return their values."""
    step, shift = (_stored(numbers, levels, 256 // len(parts)) for numbers in (scale, offset))
    codes = torch.where(step == 0, 0.0, ((parts + shift) / step).round_().clamp_(0, top))
    return codes.mul_(step).sub_(shift).T.reshape(-1, 256)


def _stored(numbers: Tensor, levels: int, parts: int) -> Tensor:
    """Return numbers of at least 0 as they are stored: an integer up to `levels` times their super-block's float16."""
    numbers = numbers.view(-1, parts)
    largest = numbers.amax(1, keepdim=True)
    unit = over_number(largest, levels).half().float()
    # a stored unit of 0 makes every product 0, whatever the integers
    return (
        torch.where(unit == 0, 0.0, (numbers * number_over(levels, largest)).round_().clamp_(max=levels)) * unit
    ).view(-1)


def _signed(parts: Tensor, scale: Tensor, top: int, levels: int) -> Tensor:
    """Store scales as integers of −levels to levels − 1, round to codes −top to top − 1, and return their values."""
    scale = scale.view(-1, 256 // len(parts))
    largest = first_peak(scale.T)[:, None]
    inverse = number_over(-levels, largest)
    unit = torch.where(largest.abs() < NO_SCALE, 0.0, number_over(1, inverse)).half().float()
    integers = torch.where(unit == 0, 0.0, (scale * inverse).round_().clamp_(-levels, levels - 1))
    step = (integers * unit).view(-1)
    codes = torch.where(step == 0, 0.0, (parts / step).round_().clamp_(-top, top - 1))
    return codes.mul_(step).T.reshape(-1, 256)
