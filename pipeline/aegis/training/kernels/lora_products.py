"""The adapter's two products, result + scale · drop(x) Aᵀ Bᵀ (Hu et al. 2021, arXiv:2106.09685), and their gradients.

The backward pass needs the input, which the base keeps anyway, and x·Aᵀ, which has r numbers per token; it computes the
dropout mask again (`kernels.dropout`). A and B are passed twice: the float32 masters get the gradients, and their casts
are multiplied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.training.kernels.dropout import drop


class Down(torch.autograd.Function):
    """drop(x) Aᵀ, (tokens, r)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, a_low: Tensor, seed: Tensor, threshold: Tensor, amplify: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, a_low, seed, threshold, amplify)
        ctx.master_dtype = a.dtype
        return drop(x.flatten(0, -2), seed, threshold, amplify) @ a_low.mT

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        x, a_low, seed, threshold, amplify = ctx.saved_tensors
        d_a = (outer[0].mT @ drop(x.flatten(0, -2), seed, threshold, amplify)).to(ctx.master_dtype)
        d_x = drop(outer[0] @ a_low, seed, threshold, amplify).view_as(x)
        return d_x, d_a, None, None, None, None


class Up(torch.autograd.Function):
    """result + scale · inner Bᵀ, with the shape of `result`."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, inner: Tensor, b: Tensor, b_low: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(inner, b_low)
        ctx.scale, ctx.master_dtype = scale, b.dtype
        return torch.addmm(result.flatten(0, -2), inner, b_low.mT, alpha=scale).view_as(result)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        inner, b_low = ctx.saved_tensors
        return outer[0], *up_gradients(outer[0], inner, b_low, ctx.scale, ctx.master_dtype), None, None


def up_gradients(
    outer: Tensor, inner: Tensor, b_low: Tensor, scale: float, master_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `inner` and of B's master, for the product scale · inner Bᵀ."""
    rows = outer.flatten(0, -2)
    return (rows @ b_low).mul(scale), (rows.mT @ inner).to(master_dtype).mul(scale)
