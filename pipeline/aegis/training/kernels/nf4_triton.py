"""Dequantizes NF4 with double quantization to 16 bit, in one Triton kernel that writes at the memory's speed.

A block of 64 values has 32 bytes of codes, the first value in a byte's upper half, and an 8-bit code for its absmax.
256 absmax codes share a scale, and all of them share an offset (Dettmers et al. 2023, arXiv:2305.14314, section 3).
Each product and each sum is rounded by itself, as in bitsandbytes' kernels, so the values are the same to the bit.

Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_BLOCKS = 32
"""Blocks of 64 values per program; with two warps this was the fastest of twenty combinations on an H200."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(codes, absmax, absmax_code, absmax_scale, offset, nf4, out, blocks, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    there = block < blocks
    scale = tl.load(absmax_code + tl.load(absmax + block, mask=there, other=0).to(tl.int32))
    # the compiler must not contract this product and this sum into one operation
    scale = libdevice.mul_rn(scale, tl.load(absmax_scale + block // 256, mask=there, other=0.0))
    scale = libdevice.add_rn(scale, tl.load(offset))[:, None]
    there = there[:, None]
    pairs = tl.load(codes + block[:, None] * 32 + tl.arange(0, 32)[None, :], mask=there, other=0).to(tl.int32)
    values = tl.interleave(tl.load(nf4 + (pairs >> 4)) * scale, tl.load(nf4 + (pairs & 15)) * scale)
    places = block[:, None] * 64 + tl.arange(0, 64)[None, :]
    tl.store(out + places, values.to(out.dtype.element_ty), mask=there)


def dequantize(
    codes: Tensor,
    absmax: Tensor,
    absmax_code: Tensor,
    absmax_scale: Tensor,
    offset: Tensor,
    nf4: Tensor,
    *,
    rows: int,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return the weight (rows, columns) in `dtype`, rows · columns a multiple of 64.

    Args:
        codes: uint8, two values per byte.
        absmax: uint8, one per block.
        absmax_code: (256,) float32, the value of each code in `absmax`.
        absmax_scale: float32, one per 256 blocks.
        offset: scalar float32.
        nf4: (16,) float32, the value of each code in `codes`.
    """
    out = torch.empty(rows, columns, dtype=dtype, device=codes.device)
    blocks = out.numel() // 64
    grid = (triton.cdiv(blocks, _BLOCKS),)
    _kernel[grid](codes, absmax, absmax_code, absmax_scale, offset, nf4, out, blocks, BLOCKS=_BLOCKS, num_warps=2)
    return out
