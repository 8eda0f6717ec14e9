"""Probe of bitsandbytes: quantizes a small matrix to NF4, multiplies and differentiates on training's device."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from aegis.doctor.cures import install
from aegis.doctor.finding import Finding
from aegis.messages import phrase

_ROWS, _COLUMNS = 128, 256
_BLOCK = 64
_NF4_ERROR = (0.05, 0.15)
"""Bounds of NF4's relative error on normally distributed numbers, which is about 0.09."""


def smoke() -> list[Finding]:
    """Quantize, multiply forward and backward as training does, and compare with the exact results."""
    if find_spec("bitsandbytes") is None:
        return [Finding("kernel", "fail", phrase("doctor.no_bitsandbytes"), install("bitsandbytes"))]
    import torch

    with _compiler_left_alone(torch):
        import bitsandbytes

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = phrase("doctor.bitsandbytes", version=bitsandbytes.__version__, device=device.type)
    reinstall = install("bitsandbytes", again=True)
    try:
        quantization, product, gradient = _errors(torch, bitsandbytes.functional, bitsandbytes.matmul_4bit, device)
    except Exception as error:  # a library for another CUDA can raise anything
        return [Finding("kernel", "fail", f"{where}: {type(error).__name__}: {error}", reinstall)]
    detail = phrase("doctor.nf4", where=where, quantization=quantization, product=product, gradient=gradient)
    bound = 1e-2 if device.type == "cuda" else 1e-4
    right = _NF4_ERROR[0] < quantization < _NF4_ERROR[1] and product < bound and gradient < bound
    return [Finding("kernel", "ok", detail) if right else Finding("kernel", "fail", detail, reinstall)]


def _errors(torch: Any, functional: Any, matmul_4bit: Any, device: Any) -> tuple[float, float, float]:
    """Return the relative errors of the quantized matrix, and of x Wᵀ and its gradient against the dequantized W."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    weight = torch.randn(_ROWS, _COLUMNS, generator=generator).to(device, dtype)
    x = torch.randn(4, _COLUMNS, generator=generator).to(device, dtype).requires_grad_()
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", blocksize=_BLOCK, compress_statistics=True)
    back = functional.dequantize_4bit(packed, state)
    product = matmul_4bit(x, packed.t(), quant_state=state)
    product.sum().backward()

    def off(found: Any, wanted: Any) -> float:
        return float(((found - wanted).float().norm() / wanted.float().norm()).item())

    return (
        off(back, weight),
        off(product, x.detach().float() @ back.float().T),
        off(x.grad, back.float().sum(0).expand_as(x)),
    )


@contextmanager
def _compiler_left_alone(torch: Any) -> Iterator[None]:
    """Import bitsandbytes without loading torch's compiler, which its 8-bit optimizers use and which takes seconds."""
    if "bitsandbytes" in sys.modules:
        yield
        return
    compile_ = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else lambda decorated: decorated
    try:
        yield
    finally:
        torch.compile = compile_
