"""Holds weights as llama.cpp's blocks: quantizes rows to Q4_K, Q5_K or Q6_K, and dequantizes them where they are.

A super-block has 256 values. In Q4_K and Q5_K each 32 of them share a 6-bit scale s and a 6-bit minimum m, and all
share the float16 numbers d and d′: value = (d·s)·q − (d′·m). In Q6_K each 16 share an 8-bit scale: value = (d·s)·q
(block_q4_K, block_q5_K and block_q6_K in ggml/src/ggml-common.h at the pinned commit). Products and sums are in
float32 and in ggml's order, so the values are ggml's to the bit.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from aegis.llama_cpp import quantize_rows

BLOCK = 256
BLOCK_BYTES = {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}
"""Bytes of a super-block, by type."""
_KINDS = list(BLOCK_BYTES)
_SLAB_VALUES = 1 << 20
"""Values per call of llama.cpp's quantizer."""


def quantize_blocks(values: Tensor, type_name: str, threads: int | None = None) -> Tensor:
    """Return the blocks that llama.cpp's quantizer makes of rows.

    Args:
        values: (rows, columns) float32 on a CPU, finite.
        type_name: a key of BLOCK_BYTES.
        threads: as many as torch's if None.

    Returns:
        (rows, bytes per row) uint8.
    """
    rows, columns = values.shape
    given, step = values.numpy(), max(1, _SLAB_VALUES // columns)
    # llama.cpp's function releases the interpreter's lock
    with ThreadPoolExecutor(threads or torch.get_num_threads()) as pool:
        parts = pool.map(lambda at: quantize_rows(given[at : at + step], type_name), range(0, rows, step))
        return torch.from_numpy(np.concatenate(list(parts)))


def dequantize_blocks(raw: Tensor, type_name: str, dtype: torch.dtype) -> Tensor:
    """Return the values of rows, on the device that holds their blocks.

    Args:
        raw: (rows, bytes per row) uint8, contiguous.
        type_name: a key of BLOCK_BYTES.

    Returns:
        (rows, columns) in `dtype`.
    """
    if raw.is_cuda and find_spec("triton") is not None:
        from aegis.model.k_quant_weights_triton import dequantize

        return dequantize(raw, _KINDS.index(type_name), BLOCK_BYTES[type_name], dtype)
    blocks = raw.view(-1, BLOCK_BYTES[type_name])
    values = _q6(blocks) if type_name == "Q6_K" else _q4_or_q5(blocks, has_fifth_bit=type_name == "Q5_K")
    return values.to(dtype).view(len(raw), -1)


def _half(blocks: Tensor, offset: int) -> Tensor:
    """Return a float16 number of each block, (blocks, 1) float32."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def _q4_or_q5(blocks: Tensor, *, has_fifth_bit: bool) -> Tensor:
    packed, codes = blocks[:, 4:16].int(), blocks[:, -128:].int().view(-1, 4, 1, 32)
    first, second, third = packed.split(4, -1)
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], -1)
    minima = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], -1)
    # a byte has the codes of two blocks of 32, the first in its lower half
    values = torch.cat([codes & 15, codes >> 4], 2).flatten(1, 2)
    if has_fifth_bit:
        places = torch.arange(8, device=blocks.device)[:, None]
        values = values + ((blocks[:, None, 16:48].int() >> places & 1) << 4)
    scale, minimum = _half(blocks, 0) * scales, _half(blocks, 2) * minima
    return scale[..., None] * values - minimum[..., None]


def _q6(blocks: Tensor) -> Tensor:
    low, high = blocks[:, :128].int().view(-1, 2, 2, 32), blocks[:, 128:192].int().view(-1, 2, 1, 32)
    places = torch.arange(4, device=blocks.device)[:, None] * 2
    codes = torch.cat([low & 15, low >> 4], 2) | ((high >> places & 3) << 4)
    scales = blocks[:, 192:208].contiguous().view(torch.int8).float()
    scale = _half(blocks, 208) * scales
    return scale[..., None] * (codes - 32).view(-1, 16, 16)
