"""A frozen linear layer whose weight is held as llama.cpp's blocks.

Forward is y = x Wᵀ + b and backward is dx = dy W. Each of them dequantizes W and releases it again, in a custom
operator that torch.compile does not look into: otherwise it would keep W from forward to backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aegis.model.k_quant_weights import BLOCK, BLOCK_BYTES, dequantize_blocks

torch.library.define("aegis::block_linear", "(Tensor x, Tensor raw, str kind) -> Tensor")
torch.library.define("aegis::block_linear_backward", "(Tensor outer, Tensor raw, str kind) -> Tensor")


@torch.library.impl("aegis::block_linear", "CompositeExplicitAutograd")
def _linear(x: Tensor, raw: Tensor, kind: str) -> Tensor:
    return nn.functional.linear(x, dequantize_blocks(raw, kind, x.dtype))


@torch.library.impl("aegis::block_linear_backward", "CompositeExplicitAutograd")
def _linear_backward(outer: Tensor, raw: Tensor, kind: str) -> Tensor:
    return outer @ dequantize_blocks(raw, kind, outer.dtype)


@torch.library.register_fake("aegis::block_linear")  # type: ignore[untyped-decorator]
def _linear_shape(x: Tensor, raw: Tensor, _kind: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], raw.shape[0])


@torch.library.register_fake("aegis::block_linear_backward")  # type: ignore[untyped-decorator]
def _linear_backward_shape(outer: Tensor, raw: Tensor, kind: str) -> Tensor:
    return outer.new_empty(*outer.shape[:-1], raw.shape[1] // BLOCK_BYTES[kind] * BLOCK)


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, kind: str) -> Tensor:
        ctx.save_for_backward(raw)
        ctx.kind = kind
        product: Tensor = torch.ops.aegis.block_linear(x, raw, kind)
        return product

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        return torch.ops.aegis.block_linear_backward(outer[0], *ctx.saved_tensors, ctx.kind), None, None


class BlockLinear(nn.Module):
    """y = x Wᵀ + b with a frozen W in blocks.

    Args:
        raw: W as its rows' blocks, (out_features, bytes per row) uint8.
        kind: a key of `BLOCK_BYTES`.
        bias: (out_features,) or None.
    """

    def __init__(self, raw: Tensor, kind: str, bias: Tensor | None) -> None:
        super().__init__()
        self.kind = kind
        self.out_features, self.in_features = raw.shape[0], raw.shape[1] // BLOCK_BYTES[kind] * BLOCK
        self.weight = nn.Parameter(raw, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _BlockProduct.apply(x, self.weight, self.kind)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias
