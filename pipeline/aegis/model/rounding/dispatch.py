"""Chooses who rounds: llama.cpp itself on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.model.rounding.on_cpu import round_on_cpu


def rounded(values: Tensor, type_name: str) -> Tensor:
    """Round each row to a type of llama.cpp and back, without an importance matrix: dequantize(quantize(values)).

    Args:
        values: (rows, columns) float32 on any device, finite; the columns are divisible into blocks of the type.
        type_name: ggml's name, such as "Q4_K".

    Returns:
        (rows, columns) float32 on the same device, without a gradient.

    Raises:
        ValueError: the type needs an importance matrix.
    """
    assert values.dtype == torch.float32, values.dtype
    return round_on_cpu(values.cpu(), type_name).to(values.device)
