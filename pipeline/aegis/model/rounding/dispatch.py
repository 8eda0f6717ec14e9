"""Chooses what rounds: llama.cpp itself on a CPU; Triton's kernels or torch on a GPU."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor

from aegis.model.rounding.in_torch import TORCH_TYPES, round_in_torch
from aegis.model.rounding.on_cpu import round_on_cpu


def rounded(values: Tensor, type_name: str) -> Tensor:
    """Round each row to a type of llama.cpp and back, without an importance matrix: dequantize(quantize(values)).

    On a CPU llama.cpp computes it; on a GPU the error is llama.cpp's to 1 %, and so are nearly all values. A type that
    has no rule for the GPU is rounded by the CPU, over a copy.

    Args:
        values: (rows, columns) float32 on any device, finite; the columns are divisible into blocks of the type.
        type_name: ggml's name, such as "Q4_K".

    Returns:
        (rows, columns) float32 on the same device, without a gradient.

    Raises:
        ValueError: the type needs an importance matrix.
    """
    assert values.dtype == torch.float32, values.dtype
    if values.device.type == "cuda" and find_spec("triton") is not None:
        from aegis.model.rounding.in_triton import TRITON_TYPES, round_in_triton

        if type_name in TRITON_TYPES:
            return round_in_triton(values, type_name)
    if values.device.type != "cpu" and type_name in TORCH_TYPES:
        return round_in_torch(values, type_name)
    return round_on_cpu(values.cpu(), type_name).to(values.device)
