"""Rounds to Q4_K, Q5_K and Q6_K in one Triton kernel each, which reads and writes a weight once.

The rules are those of `k_quants`; sums and quotients are rounded otherwise. A thread holds a whole sub-block, so that
no sum crosses threads: four of its values come with each load, and the layout of those is the layout of all. Errors
come from the sums of the fit, not from another pass over the values; those count from their weighted mean, and codes
from the one next to it, so that little cancels.

Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from aegis.model.rounding.k_quants import Search

_ROUND = tl.constexpr(12582912.0)
"""1.5 · 2²³: added and taken away, it rounds a float32 to an integer, one half to even."""
_NO_SPREAD = tl.constexpr(1e-5)
"""A variance of codes below this part of their mean square is the rounding of the sums."""


@triton.jit  # type: ignore[untyped-decorator]
def _places(supers, SUPERS: tl.constexpr, PARTS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the places of each sub-block's first four values and which of them exist."""
    block = (tl.program_id(0).to(tl.int64) * SUPERS + tl.arange(0, SUPERS))[:, None, None]
    part, within = tl.arange(0, PARTS)[None, :, None], tl.arange(0, 4)[None, None, :]
    return block * 256 + (part * (256 // PARTS) + within), block < supers


@triton.jit
def _load(given, places, there):  # type: ignore[no-untyped-def]
    """Load 16 values of each sub-block: (super-blocks, sub-blocks, 4, 2, 2)."""
    one = tl.join(tl.load(given + places, there, 0.0), tl.load(given + places + 4, there, 0.0))
    other = tl.join(tl.load(given + places + 8, there, 0.0), tl.load(given + places + 12, there, 0.0))
    return tl.join(one, other)


@triton.jit
def _store(out, places, there, values):  # type: ignore[no-untyped-def]
    one, other = tl.split(values)
    first, second = tl.split(one)
    third, fourth = tl.split(other)
    tl.store(out + places, first, there)
    tl.store(out + places + 4, second, there)
    tl.store(out + places + 8, third, there)
    tl.store(out + places + 12, fourth, there)


@triton.jit
def _spread(numbers):  # type: ignore[no-untyped-def]
    """Give each sub-block's number the axes of its values."""
    return numbers[:, :, None]


@triton.jit  # type: ignore[untyped-decorator]
def _codes(values, factor, shift, middle, LOW: tl.constexpr, TOP: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return values · factor + shift, rounded and held between LOW and TOP, less `middle`, an integer.

    Holding a number between 0 and 1 costs nothing: the processor does it while it multiplies.
    """
    share = values * _spread(factor / (TOP - LOW)) + _spread((shift - LOW) / (TOP - LOW))
    share = tl.minimum(tl.maximum(share, 0), 1)
    return (share * (TOP - LOW) + (_ROUND + LOW)) - _spread(middle + _ROUND)


@triton.jit  # type: ignore[untyped-decorator]
def _stored(numbers, unit, LEVELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return numbers as an integer times a unit of float16; `unit` is the exact one."""
    kept = unit.to(tl.float16).to(tl.float32)
    integers = tl.minimum(numbers * tl.where(kept == 0, 0, 1 / unit) + _ROUND - _ROUND, LEVELS)
    return integers * kept


@triton.jit  # type: ignore[untyped-decorator]
def _offset_kernel(  # type: ignore[no-untyped-def]
    given, out, supers, FIRST: tl.constexpr, TRIALS: tl.constexpr, TOP: tl.constexpr, SUPERS: tl.constexpr
):
    places, there = _places(supers, SUPERS, 8)
    x = tl.reshape(tl.join(_load(given, places, there), _load(given, places + 16, there)), (SUPERS, 8, 32))
    weights = _spread(tl.sqrt(tl.sum(x * x, 2) / 32)) + tl.abs(x)
    high, low = tl.max(x, 2), tl.minimum(tl.min(x, 2), 0)
    weight_sum = tl.sum(weights, 2)
    weight_sum = tl.where(weight_sum == 0, 1, weight_sum)
    inverse_sum = 1 / weight_sum
    mean = tl.sum(weights * x, 2) * inverse_sum
    u = x - _spread(mean)
    square_u = tl.sum(weights * u * u, 2)
    flat = high == low
    span = tl.where(flat, 1, high - low)
    scale, least = tl.where(flat, 0, span / TOP), low
    none = tl.zeros_like(mean)
    away = _codes(u, TOP / span, (mean - low) * (TOP / span), none, 0, TOP) * _spread(scale) + _spread(low - mean) - u
    best = tl.where(flat, float("-inf"), tl.sum(weights * away * away, 2))
    for trial in range(TRIALS):
        factor = (FIRST + 0.1 * trial + TOP) / (high - least)
        shift = (mean - least) * factor
        middle = tl.minimum(tl.maximum(shift, 0), TOP) + _ROUND - _ROUND
        codes = _codes(u, factor, shift, middle, 0, TOP)
        weighted = weights * codes
        code_sum, square_sum, product_sum = tl.sum(weighted, 2), tl.sum(weighted * codes, 2), tl.sum(weighted * u, 2)
        determinant = weight_sum * square_sum - code_sum * code_sum
        all_sum = code_sum + middle * weight_sum
        # a least value above 0 cannot be stored: the fit goes through 0 then, and where all codes are equal to the
        # rounding of the sums; there llama.cpp does as the last bits of its sums have it
        fixed = (mean * determinant > product_sum * all_sum) | (determinant <= _NO_SPREAD * weight_sum * square_sum)
        numerator = tl.where(fixed, product_sum + mean * all_sum, weight_sum * product_sum)
        fitted = numerator / tl.where(fixed, square_sum + middle * (code_sum + all_sum), determinant)
        fitted_least = tl.where(fixed, 0, mean - fitted * (all_sum * inverse_sum))
        away_sum = fitted * middle + fitted_least - mean
        error = square_u + fitted * (fitted * square_sum + 2 * (away_sum * code_sum - product_sum))
        error += away_sum * away_sum * weight_sum
        better = error < best
        best, scale = tl.where(better, error, best), tl.where(better, fitted, scale)
        least = tl.where(better, fitted_least, least)
    step = _stored(scale, (tl.max(scale, 1) / 63)[:, None], 63)
    shift = _stored(-least, (tl.max(-least, 1) / 63)[:, None], 63)
    inverse = tl.where(step == 0, 0, 1 / step)
    values = _codes(x, inverse, shift * inverse, none, 0, TOP) * _spread(step) - _spread(shift)
    one, other = tl.split(tl.reshape(values, (SUPERS, 8, 4, 2, 2, 2)))
    _store(out, places, there, one)
    _store(out, places + 16, there, other)


@triton.jit  # type: ignore[untyped-decorator]
def _signed_kernel(given, out, supers, SUPERS: tl.constexpr):  # type: ignore[no-untyped-def]
    places, there = _places(supers, SUPERS, 16)
    x = tl.reshape(_load(given, places, there), (SUPERS, 16, 16))
    high, low = tl.max(x, 2), tl.min(x, 2)
    peak = tl.where(high >= -low, high, low)
    empty = tl.abs(peak) < 1e-15
    inverse = tl.where(empty, 0, 1 / tl.where(empty, 1, peak))
    weights = x * x
    weighted_x = weights * x
    none = tl.zeros_like(peak)
    scale, best = none, none
    for trial in range(20):
        # llama.cpp tries 32 first, and keeps it unless another is better
        candidate = tl.where(trial == 0, 32.0, 32 + 0.1 * (trial - 10))
        codes = _codes(x, -candidate * inverse, none, none, -32, 31)
        product_sum, square_sum = tl.sum(weighted_x * codes, 2), tl.sum(weights * codes * codes, 2)
        fitted = product_sum / square_sum
        better = (square_sum > 0) & ((product_sum * product_sum > best * square_sum) | (trial == 0))
        scale, best = tl.where(better, fitted, scale), tl.where(better, fitted * product_sum, best)
    high, low = tl.max(scale, 1), tl.min(scale, 1)
    unit = (tl.where(high > -low, high, low) / -128)[:, None]
    step = _stored(scale, unit, 127)
    values = _codes(x, tl.where(step == 0, 0, 1 / step), none, none, -32, 31) * _spread(step)
    _store(out, places, there, tl.reshape(values, (SUPERS, 16, 4, 2, 2)))


def round_with_offset(values: Tensor, search: Search) -> Tensor:
    """Round to Q4_K or Q5_K.

    Args:
        search: the type's entry in `k_quants.SEARCHES`.
        values: (rows, columns) float32, contiguous, columns a multiple of 256.

    Returns:
        (rows, columns) float32.
    """
    out, supers = torch.empty_like(values), values.numel() // 256
    grid = (triton.cdiv(supers, 16),)
    top, first, trials = search
    _offset_kernel[grid](values, out, supers, FIRST=first, TRIALS=trials, TOP=top, SUPERS=16, num_warps=4)
    return out


def round_signed(values: Tensor) -> Tensor:
    """Round to Q6_K: (rows, columns) float32, contiguous, columns a multiple of 256, to the same."""
    out, supers = torch.empty_like(values), values.numel() // 256
    _signed_kernel[(triton.cdiv(supers, 8),)](values, out, supers, SUPERS=8, num_warps=4)
    return out
