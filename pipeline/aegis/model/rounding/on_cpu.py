"""Rounds on a CPU with llama.cpp's own functions, in as many threads as torch uses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from aegis.llama_cpp import dequantize_rows, quantize_rows

_SLAB = 1 << 20
"""Values per call: each thread holds their blocks and their rounded values, about 5 MB."""


def round_on_cpu(values: Tensor, type_name: str) -> Tensor:
    """Return dequantize(quantize(values)): equal to llama.cpp's to the bit, because it computes them.

    Args:
        values: (rows, columns) float32 on a CPU, finite.
        type_name: ggml's name, such as "Q4_K".

    Returns:
        (rows, columns) float32.

    Raises:
        ValueError: the type needs an importance matrix.
    """
    rows, columns = values.shape
    given, out = values.detach().contiguous().numpy(), torch.empty(rows, columns)
    view, step = out.numpy(), max(1, _SLAB // columns)

    def fill(start: int) -> None:
        raw = quantize_rows(given[start : start + step], type_name)
        view[start : start + step] = dequantize_rows(raw, type_name, columns)

    # both functions of llama.cpp release the interpreter's lock
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        list(pool.map(fill, range(0, rows, step)))
    return out
