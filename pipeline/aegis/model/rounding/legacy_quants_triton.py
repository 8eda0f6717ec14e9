"""Rounds to Q4_0, Q5_0 and Q8_0 in one Triton kernel each, which reads and writes a weight once.

The rules are those of `legacy_quants`; products and sums are not contracted, so the values are the same to the bit.

Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCKS = 64
"""Blocks of 32 values per program."""


@triton.jit  # type: ignore[untyped-decorator]
def _places(blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the places of a program's values and which of them exist."""
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    return block * 32 + tl.arange(0, 32)[None, :], block < blocks


@triton.jit
def _stored(step):  # type: ignore[no-untyped-def]
    """Return the step as float16 stores it, and 1 / the exact one."""
    kept = step.to(tl.float16).to(tl.float32)
    return kept[:, None], tl.where(kept == 0, 0, tl.div_rn(tl.zeros_like(step) + 1, step))[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _peak_kernel(given, out, blocks, HALF: tl.constexpr, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    places, there = _places(blocks, BLOCKS)
    x = tl.load(given + places, there, 0.0)
    first = tl.argmax(tl.abs(x), 1, tie_break_left=True)
    peak = tl.sum(tl.where(tl.arange(0, 32)[None, :] == first[:, None], x, 0), 1)
    step, inverse = _stored(peak * (-1 / HALF))
    codes = tl.minimum(tl.floor(x * inverse + (HALF + 0.5)), 2 * HALF - 1)
    tl.store(out + places, (codes - HALF) * step, there)


@triton.jit  # type: ignore[untyped-decorator]
def _byte_kernel(given, out, blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    places, there = _places(blocks, BLOCKS)
    x = tl.load(given + places, there, 0.0)
    largest = tl.max(tl.abs(x), 1)
    step, inverse = _stored(tl.div_rn(largest, tl.zeros_like(largest) + 127))
    codes = tl.floor(tl.abs(x) * inverse + 0.5) * step
    tl.store(out + places, tl.where(x < 0, -codes, codes), there)


def round_by_peak(values: Tensor, half: int) -> Tensor:
    """Round to Q4_0 (`half` 8) or Q5_0 (16).

    Args:
        values: (rows, columns) float32, contiguous, columns a multiple of 32.

    Returns:
        (rows, columns) float32.
    """
    out, blocks = torch.empty_like(values), values.numel() // 32
    _peak_kernel[(triton.cdiv(blocks, _BLOCKS),)](
        values, out, blocks, HALF=half, BLOCKS=_BLOCKS, num_warps=4, enable_fp_fusion=False
    )
    return out


def round_to_bytes(values: Tensor) -> Tensor:
    """Round to Q8_0: (rows, columns) float32, contiguous, columns a multiple of 32, to the same."""
    out, blocks = torch.empty_like(values), values.numel() // 32
    grid = (triton.cdiv(blocks, _BLOCKS),)
    _byte_kernel[grid](values, out, blocks, BLOCKS=_BLOCKS, num_warps=4, enable_fp_fusion=False)
    return out
