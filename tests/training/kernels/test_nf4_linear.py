"""Tests of the base's NF4 products in training.

Their kernel needs a GPU (tests/training/test_gpu.py): here bitsandbytes' dequantization replaces it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bitsandbytes import functional
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from aegis.training.kernels.nf4_linear import install_nf4_linear, supports_nf4_linear

ROWS, COLUMNS = 96, 128


def weight(state: tuple[Tensor, ...], rows: int, columns: int) -> Tensor:
    codes, absmax, absmax_code, absmax_scale, offset, nf4 = state
    second = functional.QuantState(absmax_scale, blocksize=256, code=absmax_code, dtype=torch.float32)
    shape = torch.Size((rows, columns))
    whole = functional.QuantState(absmax, shape, nf4, 64, "nf4", torch.float32, offset=offset, state2=second)
    return functional.dequantize_4bit(codes.view(-1, 1), whole)


@torch.library.impl("aegis::nf4_linear", "cpu")
def linear(x: Tensor, bias: Tensor | None, inner: Tensor | None, b: Tensor | None, scale: float, *rest: Any) -> Tensor:
    product = nn.functional.linear(x, weight(rest[:-1], rest[-1], x.shape[-1]), bias)
    return product if inner is None or b is None else product + (scale * inner @ b.mT).view_as(product)


@torch.library.impl("aegis::nf4_linear_backward", "cpu")
def linear_backward(outer: Tensor, *rest: Any) -> Tensor:
    return outer @ weight(rest[:-1], outer.shape[-1], rest[-1])


def make(bias: bool) -> nn.Sequential:
    torch.manual_seed(0)
    layer = Linear4bit(
        COLUMNS, ROWS, bias=bias, compute_dtype=torch.float32, compress_statistics=True, quant_type="nf4"
    )
    return nn.Sequential(layer, nn.Linear(ROWS, 8)).requires_grad_(False).to("cpu")


@pytest.mark.parametrize("bias", [True, False])
def test_product_and_gradient_equal_those_of_bitsandbytes(bias: bool) -> None:
    plain, ours = make(bias), make(bias)
    install_nf4_linear(ours)
    assert type(ours[0]).__name__ == "Nf4LinearLinear4bit"
    assert isinstance(ours[0], Linear4bit)
    assert type(ours[1]) is nn.Linear
    found = []
    for model in (plain, ours):
        x = torch.randn(2, 5, COLUMNS, generator=torch.Generator().manual_seed(1)).requires_grad_()
        output = model[0](x)
        output.square().sum().backward()
        found.append((output.detach(), x.grad))
    torch.testing.assert_close(found[0], found[1])
    another = make(bias)
    another[0].weight.data ^= 1  # every second value another
    install_nf4_linear(another)
    assert not torch.allclose(another[0](torch.ones(1, COLUMNS)), ours[0](torch.ones(1, COLUMNS)))


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_with_an_adapter_returns_the_sum_of_both_products(bias: bool) -> None:
    """Values and every gradient, the masters' too; another scale misses."""

    def through(ours: bool, scale: float) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        shapes = (2, 5, COLUMNS), (10, 4), (ROWS, 4)
        x, inner, b = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
        layer = make(bias)[:1]
        if ours:
            install_nf4_linear(layer)
            output = layer[0].with_low_rank(x, inner, b, b.detach(), scale)
        else:
            output = layer[0](x) + (scale * inner @ b.mT).view(2, 5, ROWS)
        output.square().sum().backward()
        return [output.detach(), *(tensor.grad for tensor in (x, inner, b) if tensor.grad is not None)]

    plain, fused, missed = through(False, 2.0), through(True, 2.0), through(True, 2.2)
    assert len(plain) == len(fused) == 4
    for wanted, found, other in zip(plain, fused, missed, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(other, wanted, rtol=1e-3, atol=1e-3)


def test_only_a_gpu_supports_the_kernel() -> None:
    assert not supports_nf4_linear(torch.device("cpu"))
