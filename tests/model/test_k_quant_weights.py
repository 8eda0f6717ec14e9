"""Weights held as llama.cpp's blocks: the values are ggml's to the bit, and a layer computes with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from aegis.llama_cpp import dequantize_rows
from aegis.model.k_quant_linear import BlockLinear
from aegis.model.k_quant_weights import BLOCK_BYTES, dequantize_blocks, quantize_blocks

ROWS, COLUMNS = 24, 768
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def blocks(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in blocks, and ggml's own values of them."""
    values = np.random.default_rng(seed).standard_t(3, (ROWS, COLUMNS)).astype(np.float32)
    raw = quantize_blocks(torch.from_numpy(values), kind)
    return raw, torch.from_numpy(dequantize_rows(raw.numpy(), kind, COLUMNS))


@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_the_values_of_blocks_are_ggmls_to_the_bit(kind: str) -> None:
    raw, wanted = blocks(kind)
    assert torch.equal(dequantize_blocks(raw, kind, torch.float32), wanted)
    changed = raw.clone()
    changed[3, 20] ^= 1
    assert not torch.equal(dequantize_blocks(changed, kind, torch.float32), wanted)


@pytest.mark.gpu
@no_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_the_kernel_gives_the_same_values(kind: str, dtype: torch.dtype) -> None:
    raw, wanted = blocks(kind)
    assert torch.equal(dequantize_blocks(raw.cuda(), kind, dtype).cpu(), wanted.to(dtype))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, no_gpu))])
@pytest.mark.parametrize("kind", BLOCK_BYTES)
def test_a_layer_with_blocks_computes_as_one_with_their_values(kind: str, device: str) -> None:
    raw, weight = (tensor.to(device) for tensor in blocks(kind))
    bias = torch.randn(ROWS, device=device)
    x = torch.randn(5, 7, COLUMNS, device=device, requires_grad=True)
    layer = BlockLinear(raw, kind, bias)
    y, plain = layer(x), torch.nn.functional.linear(x, weight, bias)
    near = {"rtol": 1e-4, "atol": 1e-3}  # a GPU adds the bias in another operation
    torch.testing.assert_close(y, plain, **near)
    outer = torch.randn_like(y)
    found, wanted = (torch.autograd.grad(result, x, outer)[0] for result in (y, plain))
    torch.testing.assert_close(found, wanted, **near)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    other = torch.nn.functional.linear(x, weight.roll(1, 0), bias)
    assert not torch.allclose(y, other, **near)
