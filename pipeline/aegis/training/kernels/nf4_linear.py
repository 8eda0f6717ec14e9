"""The base's linear layers while an adapter is trained on them: a frozen NF4 weight, read once a direction.

y = x Wᵀ + b forward and dx = dy W backward, where W is dequantized anew each time and let go: at 3.8 B it would take
7 GB to keep. bitsandbytes does the same in three kernels, whose writes reach half of the memory's speed; here one
makes W from its codes and both levels of its scales (`model.nf4_kernel`), to the same bits. A third of a step of 512
tokens was dequantization.

Both directions are operators that the compiler does not look into: it would find W in either and keep the first for the
second. Where an adapter sits on the layer, its product is made first and W's is added to it in place: a sum of its own
would read and write the result twice more.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from aegis.model.nf4_format import BLOCK, SECOND_BLOCK
from aegis.training.kernels.lora import up_gradients
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

    return dequantize(*state, rows=rows, columns=columns, dtype=dtype)


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
    """x Wᵀ + bias, and + scale · inner Bᵀ where there is an adapter."""

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
    """Mixed into a bitsandbytes layer's class: the same weight, another product."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.with_low_rank(x, None, None, None, 1.0)

    def with_low_rank(
        self: Any, x: Tensor, inner: Tensor | None, b: Tensor | None, b_low: Tensor | None, scale: float
    ) -> Any:
        """The layer's product and `low_rank.Up` in one, or its product alone."""
        return _Nf4Product.apply(  # type: ignore[no-untyped-call]
            x, self.bias, self.out_features, inner, b, b_low, scale, *self.aegis_state
        )


def supports_nf4_linear(device: torch.device) -> bool:
    """Whether the kernel can run: it is written in Triton, which torch brings along on Linux."""
    return device.type == "cuda" and find_spec("triton") is not None


def install_nf4_linear(model: Any) -> None:
    """Take over every layer whose weight is in NF4 with doubly quantized scales; the weights stay where they are."""
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if not isinstance(layer, Linear4bit) or state is None or not _is_ours(state):
            continue
        second = state.state2
        layer.aegis_state = (
            layer.weight.data.view(-1),
            state.absmax,
            second.code,
            second.absmax,
            state.offset,
            state.code,
        )
        layer.__class__ = with_mixin(type(layer), Nf4Linear)  # type: ignore[arg-type]


def _is_ours(state: Any) -> bool:
    nested = state.nested and state.state2.blocksize == SECOND_BLOCK
    return bool(state.quant_type == "nf4" and state.blocksize == BLOCK and nested)
