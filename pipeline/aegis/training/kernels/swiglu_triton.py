"""The gradient of SiLU(gate) · up in one Triton kernel, which reads three rows and writes two.

Import this module only where Triton is installed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024
"""Columns per program."""


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(outer, gate_up, out, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = column < width
    at_gate = row * 2 * width + column
    gate = tl.load(gate_up + at_gate, mask=there).to(tl.float32)
    up = tl.load(gate_up + at_gate + width, mask=there).to(tl.float32)
    above = tl.load(outer + row * width + column, mask=there).to(tl.float32)
    share = tl.sigmoid(gate)
    # d(gate · share) = share · (1 + gate · (1 − share))
    d_gate = above * up * share * (1 + gate * (1 - share))
    tl.store(out + at_gate, d_gate.to(out.dtype.element_ty), mask=there)
    tl.store(out + at_gate + width, (above * gate * share).to(out.dtype.element_ty), mask=there)


def swiglu_backward(outer: Tensor, gate_up: Tensor) -> Tensor:
    """Return the gradient of gate and up, with the shape of `gate_up` (…, 2 · width).

    Args:
        outer: (…, width), the gradient of the product, same dtype.
        gate_up: (…, 2 · width), gate's columns, then up's.
    """
    outer, gate_up = outer.contiguous(), gate_up.contiguous()
    out, width = torch.empty_like(gate_up), outer.shape[-1]
    grid = (outer.numel() // width, triton.cdiv(width, _BLOCK))
    _kernel[grid](outer, gate_up, out, width, BLOCK=_BLOCK)
    return out
