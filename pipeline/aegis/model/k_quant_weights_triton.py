"""Dequantizes Q4_K, Q5_K and Q6_K to 16 bit in one Triton kernel; the layout is in `model.k_quant_weights`.

Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

_BLOCKS = 4
"""Super-blocks per program."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(raw, halves, out, blocks, KIND: tl.constexpr, BYTES: tl.constexpr, BLOCKS: tl.constexpr):  # type: ignore[no-untyped-def]
    block = (tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS))[:, None]
    there = block < blocks
    place = tl.arange(0, 256)[None, :]
    start = raw + block * BYTES
    half = halves + block * (BYTES // 2)
    if KIND == 2:
        group, rest = place // 128, place % 128
        quarter, lane = rest // 32, rest % 32
        low = tl.load(start + group * 64 + (quarter % 2) * 32 + lane, mask=there, other=0).to(tl.int32)
        high = tl.load(start + 128 + group * 32 + lane, mask=there, other=0).to(tl.int32)
        code = ((low >> (quarter // 2 * 4)) & 15) | (((high >> (quarter * 2)) & 3) << 4)
        scale = tl.load(start + 192 + place // 16, mask=there, other=0).to(tl.int8, bitcast=True).to(tl.float32)
        scale = libdevice.mul_rn(tl.load(half + 104, mask=there, other=0.0).to(tl.float32), scale)
        values = libdevice.mul_rn(scale, (code - 32).to(tl.float32))
    else:
        part, lane = place // 32, place % 32
        first = tl.load(start + 4 + part % 4, mask=there, other=0).to(tl.int32)
        second = tl.load(start + 8 + part % 4, mask=there, other=0).to(tl.int32)
        third = tl.load(start + 12 + part % 4, mask=there, other=0).to(tl.int32)
        scale = tl.where(part < 4, first & 63, (third & 15) | ((first >> 6) << 4)).to(tl.float32)
        minimum = tl.where(part < 4, second & 63, (third >> 4) | ((second >> 6) << 4)).to(tl.float32)
        codes = start + (BYTES - 128) + part // 2 * 32 + lane
        code = (tl.load(codes, mask=there, other=0).to(tl.int32) >> (part % 2 * 4)) & 15
        if KIND == 1:
            code += ((tl.load(start + 16 + lane, mask=there, other=0).to(tl.int32) >> part) & 1) << 4
        scale = libdevice.mul_rn(tl.load(half, mask=there, other=0.0).to(tl.float32), scale)
        minimum = libdevice.mul_rn(tl.load(half + 1, mask=there, other=0.0).to(tl.float32), minimum)
        # the compiler must not contract this product and this difference into one operation
        values = libdevice.add_rn(libdevice.mul_rn(scale, code.to(tl.float32)), -minimum)
    tl.store(out + block * 256 + place, values.to(out.dtype.element_ty), mask=there)


def dequantize(raw: Tensor, kind: int, block_bytes: int, dtype: torch.dtype) -> Tensor:
    """Return the values of rows, (rows, columns) in `dtype`.

    Args:
        raw: (rows, bytes per row) uint8 on a GPU, contiguous.
        kind: 0 for Q4_K, 1 for Q5_K, 2 for Q6_K.
        block_bytes: bytes of a super-block.
    """
    blocks = raw.numel() // block_bytes
    out = torch.empty(len(raw), raw.shape[1] // block_bytes * 256, dtype=dtype, device=raw.device)
    grid = (triton.cdiv(blocks, _BLOCKS),)
    halves = raw.view(-1).view(torch.float16)
    _kernel[grid](raw, halves, out, blocks, KIND=kind, BYTES=block_bytes, BLOCKS=_BLOCKS, num_warps=4)
    return out
