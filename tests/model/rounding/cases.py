"""Weights to round, and how near a rounding comes to llama.cpp's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aegis.llama_cpp import dequantize_rows, quantize_rows

SCALE_ROUNDING = 2.0**-11
"""The relative error of a float16 scale. Where all fits of a constant are exact, only this error is left."""


def cases(rows: int, columns: int = 2304) -> dict[str, Tensor]:
    """Return weights of every kind, each (rows, columns)."""
    generator = torch.Generator().manual_seed(1)
    normal, other = torch.randn(2, rows, columns, generator=generator)
    # Student's t with 2 degrees of freedom: the squared length of two normals is exponential
    tails = other / torch.rand(rows, columns, generator=generator).clamp_(min=1e-6).log_().neg_().sqrt_()
    outlier = normal * 0.02
    outlier[:, 777] = 50.0
    constant = torch.linspace(-1, 1, rows)[:, None].expand(rows, columns).contiguous()
    return {
        "normal": normal * 0.02,
        "heavy tails": tails * 0.02,
        "zeros": torch.zeros(rows, columns),
        "constant rows": constant,
        "one outlier": outlier,
        "tiny": normal * 1e-8,
        "subnormal scales": normal * 3e-5,
        "16 bit": (normal * 0.02).bfloat16().float(),
    }


def by_llama_cpp(values: Tensor, type_name: str) -> Tensor:
    array = values.numpy()
    return torch.from_numpy(np.array(dequantize_rows(quantize_rows(array, type_name), type_name, array.shape[1])))


def equal_share(found: Tensor, theirs: Tensor) -> float:
    """Return the share of values that are equal, to a millionth of the largest of 32 neighbours."""
    found, theirs = found.reshape(-1, 32), theirs.reshape(-1, 32)
    near = 1e-6 * theirs.abs().amax(1, keepdim=True)
    return ((found - theirs).abs() <= near).double().mean().item()


def is_as_near(found: Tensor, theirs: Tensor, values: Tensor, margin: float = 0.01) -> bool:
    """Tell whether the error is llama.cpp's to 1 %, or all that is left is the rounding of the scales."""
    error, wanted = (((rounded - values).double().norm()).item() for rounded in (found, theirs))
    spared = SCALE_ROUNDING * values.double().norm().item()
    return max(error, wanted) <= spared or abs(error - wanted) <= margin * wanted
