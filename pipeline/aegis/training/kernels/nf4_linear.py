"""A linear layer with a frozen NF4 weight, and the adapter's product in the same operator.

Forward is y = x Wᵀ + b and backward is dx = dy W. Each of them dequantizes W and releases it again: for a 3.8 B model
all of W would take 7 GB. bitsandbytes dequantizes in three kernels that write at half of the memory's speed; here one
kernel computes W from its codes and both levels of its scales (`kernels.nf4_triton`), with the same bits. Before that,
dequantization was a third of a step of 512 tokens.

Forward and backward are custom operators, because torch.compile does not look inside them: otherwise it would see the
same W in both, and keep it from forward to backward. Where the layer has an adapter, the adapter's product is computed
first and x Wᵀ is added to it in place; a separate sum would read and write the result twice more.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from aegis.model.nf4_format import BLOCK, SECOND_BLOCK, quant_state_of
from aegis.training.kernels.lora_products import up_gradients
from aegis.training.kernels.patching import with_mixin

_STATE = "Tensor codes, Tensor absmax, Tensor absmax_code, Tensor absmax_scale, Tensor offset, Tensor nf4"
_STATE_SIZE = _STATE.count("Tensor")
torch.library.define(
    "aegis::nf4_linear",
    f"(Tensor x, Tensor? bias, Tensor? inner, Tensor? b, float scale, {_STATE}, int rows) -> Tensor",
)
torch.library.define("aegis::nf4_linear_backward", f"(Tensor outer, {_STATE}, int columns) -> Tensor")


def _weight(state: tuple[Tensor, ...], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    from aegis.training.kernels.nf4_triton import dequantize

    codes, *scales = state  # a sharded base holds its codes as other numbers (`distributed.sharded_base`)
    return dequantize(codes.view(torch.uint8), *scales, rows=rows, columns=columns, dtype=dtype)


@torch.library.impl("aegis::nf4_linear", "cuda")
def _linear(x: Tensor, bias: Tensor | None, inner: Tensor | None, b: Tensor | None, scale: float, *rest: Any) -> Tensor:
    *state, rows = rest
    weight = _weight(tuple(state), rows, x.shape[-1], x.dtype)
    if inner is None or b is None:
        return torch.nn.functional.linear(x, weight, bias)
    result = x.new_empty(inner.shape[0], rows)
    torch.addmm(result, inner, b.mT, beta=0, alpha=scale, out=result)
    torch.addmm(result, x.flatten(0, -2), weight.mT, out=result)
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], rows)


@torch.library.impl("aegis::nf4_linear_backward", "cuda")
def _linear_backward(outer: Tensor, *rest: Any) -> Tensor:
    *state, columns = rest
    return outer @ _weight(tuple(state), outer.shape[-1], columns, outer.dtype)


@torch.library.register_fake("aegis::nf4_linear")  # type: ignore[untyped-decorator]
def _linear_shape(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rest[-1])


@torch.library.register_fake("aegis::nf4_linear_backward")  # type: ignore[untyped-decorator]
def _linear_backward_shape(outer: Tensor, *rest: Any) -> Tensor:
    return outer.new_empty(*outer.shape[:-1], rest[-1])


class _Nf4Product(torch.autograd.Function):
    """x Wᵀ + bias, plus scale · inner Bᵀ where there is an adapter."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        rows: int,
        inner: Tensor | None,
        b: Tensor | None,
        b_low: Tensor | None,
        scale: float,
        *state: Tensor,
    ) -> Tensor:
        ctx.columns, ctx.scale = x.shape[-1], scale
        if inner is None or b is None or b_low is None:
            ctx.save_for_backward(*state)
        else:
            ctx.save_for_backward(*state, inner, b_low)
            ctx.master_dtype = b.dtype
        product: Tensor = torch.ops.aegis.nf4_linear(x, bias, inner, b_low, scale, *state, rows)
        return product

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        state, up = saved[:_STATE_SIZE], saved[_STATE_SIZE:]
        gradient: Tensor = torch.ops.aegis.nf4_linear_backward(outer[0], *state, ctx.columns)
        ups: tuple[Tensor | None, ...] = (None, None)
        if up:
            inner, b_low = up
            ups = up_gradients(outer[0], inner, b_low, ctx.scale, ctx.master_dtype)
        return gradient, None, None, *ups, None, None, *[None] * len(state)


class Nf4Linear:
    """A mixin for the class of bitsandbytes' linear layer: it replaces the product and keeps the weight."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.with_low_rank(x, None, None, None, 1.0)

    def with_low_rank(
        self: Any, x: Tensor, inner: Tensor | None, b: Tensor | None, b_low: Tensor | None, scale: float
    ) -> Any:
        """Return the layer's product, plus `lora_products.Up`'s if `inner` is given."""
        codes = self.weight if self.aegis_codes is None else self.aegis_codes
        return _Nf4Product.apply(  # type: ignore[no-untyped-call]
            x, self.bias, self.out_features, inner, b, b_low, scale, codes, *self.aegis_scales
        )


def supports_nf4_linear(device: torch.device) -> bool:
    """Whether the kernel can run: it needs a GPU and Triton, which torch installs on Linux."""
    return device.type == "cuda" and find_spec("triton") is not None


def install_nf4_linear(model: Any) -> None:
    """Mix `Nf4Linear` into every layer whose weight is NF4 with double quantization; the weights do not move."""
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        state = quant_state_of(layer) if isinstance(layer, Linear4bit) else None
        if state is None or not _is_ours(state):
            continue
        second = state.state2
        # the weight of a sharded base is gathered for each pass, so it has no codes to hold on to
        layer.aegis_codes = layer.weight.data.view(-1) if layer.weight.dtype == torch.uint8 else None
        layer.aegis_scales = state.absmax, second.code, second.absmax, state.offset, state.code
        layer.__class__ = with_mixin(type(layer), Nf4Linear)  # type: ignore[arg-type]


def _is_ours(state: Any) -> bool:
    nested = state.nested and state.state2.blocksize == SECOND_BLOCK
    return bool(state.quant_type == "nf4" and state.blocksize == BLOCK and nested)
