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

from aegis.model.low_rank import up_gradients
from aegis.model.nf4 import BLOCK, SECOND_BLOCK
from aegis.model.taken_over import taken_over

_STATE = "Tensor codes, Tensor absmax, Tensor absmax_code, Tensor absmax_scale, Tensor offset, Tensor nf4"
torch.library.define("aegis::nf4_linear", f"(Tensor x, Tensor? bias, {_STATE}, int rows) -> Tensor")
torch.library.define(
    "aegis::nf4_linear_onto",
    f"(Tensor inner, Tensor b, float scale, Tensor x, Tensor? bias, {_STATE}, int rows) -> Tensor",
)
torch.library.define("aegis::nf4_linear_backward", f"(Tensor outer, {_STATE}, int columns) -> Tensor")


def _weight(state: tuple[Tensor, ...], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    from aegis.model.nf4_kernel import dequantize

    return dequantize(*state, rows=rows, columns=columns, dtype=dtype)


@torch.library.impl("aegis::nf4_linear", "cuda")
def _linear(x: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *state, rows = rest
    return torch.nn.functional.linear(x, _weight(tuple(state), rows, x.shape[-1], x.dtype), bias)


@torch.library.impl("aegis::nf4_linear_onto", "cuda")
def _linear_onto(inner: Tensor, b: Tensor, scale: float, x: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    *state, rows = rest
    result = x.new_empty(inner.shape[0], rows)
    torch.addmm(result, inner, b.mT, beta=0, alpha=scale, out=result)
    torch.addmm(result, x.flatten(0, -2), _weight(tuple(state), rows, x.shape[-1], x.dtype).mT, out=result)
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], rows)


@torch.library.impl("aegis::nf4_linear_backward", "cuda")
def _linear_backward(outer: Tensor, *rest: Any) -> Tensor:
    *state, columns = rest
    return outer @ _weight(tuple(state), outer.shape[-1], columns, outer.dtype)


@torch.library.register_fake("aegis::nf4_linear")  # type: ignore[untyped-decorator]
def _linear_shape(x: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rest[-1])


@torch.library.register_fake("aegis::nf4_linear_onto")  # type: ignore[untyped-decorator]
def _linear_onto_shape(inner: Tensor, b: Tensor, scale: float, x: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], rest[-1])


@torch.library.register_fake("aegis::nf4_linear_backward")  # type: ignore[untyped-decorator]
def _linear_backward_shape(outer: Tensor, *rest: Any) -> Tensor:
    return outer.new_empty(*outer.shape[:-1], rest[-1])


class _Nf4Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, rows: int, *state: Tensor) -> Tensor:
        ctx.save_for_backward(*state)
        ctx.columns = x.shape[-1]
        product: Tensor = torch.ops.aegis.nf4_linear(x, bias, *state, rows)
        return product

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        gradient: Tensor = torch.ops.aegis.nf4_linear_backward(outer[0], *ctx.saved_tensors, ctx.columns)
        return gradient, None, None, *[None] * len(ctx.saved_tensors)


class _Nf4LinearOnto(torch.autograd.Function):
    """x Wᵀ + bias + scale · inner Bᵀ."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Tensor,
        b: Tensor,
        b_low: Tensor,
        scale: float,
        bias: Tensor | None,
        rows: int,
        *state: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(inner, b_low, *state)
        ctx.columns, ctx.scale, ctx.master_dtype = x.shape[-1], scale, b.dtype
        product: Tensor = torch.ops.aegis.nf4_linear_onto(inner, b_low, scale, x, bias, *state, rows)
        return product

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        inner, b_low, *state = ctx.saved_tensors
        gradient: Tensor = torch.ops.aegis.nf4_linear_backward(outer[0], *state, ctx.columns)
        d_inner, d_b = up_gradients(outer[0], inner, b_low, ctx.scale, ctx.master_dtype)
        return gradient, d_inner, d_b, None, None, None, None, *[None] * len(state)


class Frozen:
    """Mixed into a bitsandbytes layer's class: the same weight, another product."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return _Nf4Linear.apply(x, self.bias, self.out_features, *self.aegis_state)  # type: ignore[no-untyped-call]

    def with_low_rank(self: Any, x: Tensor, inner: Tensor, b: Tensor, b_low: Tensor, scale: float) -> Tensor:
        """The layer's product and `low_rank.Up` in one."""
        return _Nf4LinearOnto.apply(  # type: ignore[no-untyped-call]
            x, inner, b, b_low, scale, self.bias, self.out_features, *self.aegis_state
        )


def supports_frozen(device: torch.device) -> bool:
    """Whether the kernel can run: it is written in Triton, which torch brings along on Linux."""
    return device.type == "cuda" and find_spec("triton") is not None


def install_frozen(model: Any) -> None:
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
        layer.__class__ = taken_over(type(layer), Frozen)  # type: ignore[arg-type]


def _is_ours(state: Any) -> bool:
    nested = state.nested and state.state2.blocksize == SECOND_BLOCK
    return bool(state.quant_type == "nf4" and state.blocksize == BLOCK and nested)
