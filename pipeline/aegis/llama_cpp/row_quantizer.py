"""Quantizes and dequantizes rows of a weight with llama.cpp's own functions, in this process.

`llama_model_quantize` calls `ggml_quantize_chunk` for every chunk of rows (src/llama-quant.cpp,
llama_tensor_quantize_impl): a row's bytes depend only on that row and on the importance matrix. Both calls release the
interpreter's lock.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h at the pinned commit."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", _TO_FLOAT),
        ("from_float_ref", ctypes.c_void_p),
    )


def quantize_rows(
    values: NDArray[np.float32], type_name: str, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize rows as llama.cpp's quantizer does.

    Args:
        values: (rows, columns) float32, finite; the columns are divisible into blocks of the type.
        type_name: ggml's name, such as "Q4_K".
        importance: (columns,) float32.

    Returns:
        (rows, bytes per row) uint8.

    Raises:
        ValueError: the type needs an importance matrix (llama.cpp would abort the process).
    """
    kind = GGMLQuantizationType[type_name]
    library = _library()
    if importance is None and library.ggml_quantize_requires_imatrix(int(kind)):
        raise ValueError(f"{type_name} needs an importance matrix")
    rows, columns = values.shape
    out = np.empty((rows, row_bytes(type_name, columns)), np.uint8)
    source = np.ascontiguousarray(values, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    library.ggml_quantize_chunk(
        int(kind),
        source.ctypes.data,
        out.ctypes.data,
        0,
        rows,
        columns,
        weights.ctypes.data if weights is not None else 0,
    )
    return out


def dequantize_rows(raw: NDArray[np.uint8], type_name: str, columns: int) -> NDArray[np.float32]:
    """Dequantize rows of a weight.

    Args:
        raw: (rows, bytes per row) uint8.

    Returns:
        (rows, columns) float32.
    """
    kind = GGMLQuantizationType[type_name]
    assert raw.shape[1] == row_bytes(type_name, columns), (raw.shape, type_name, columns)
    source, out = np.ascontiguousarray(raw), np.empty((len(raw), columns), np.float32)
    if kind == GGMLQuantizationType.F32:
        return source.view(np.float32)
    _library().ggml_get_type_traits(int(kind)).contents.to_float(source.ctypes.data, out.ctypes.data, out.size)
    return out


def row_bytes(type_name: str, columns: int) -> int:
    """Return the bytes per row."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    assert columns % block == 0, (type_name, columns)
    return columns // int(block) * int(size)


@cache
def _library() -> Any:
    from llama_cpp._ggml import libggml

    libggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    libggml.ggml_quantize_chunk.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p),
        *(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p),
    )
    libggml.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    libggml.ggml_quantize_requires_imatrix.argtypes = (ctypes.c_int,)
    libggml.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    libggml.ggml_get_type_traits.argtypes = (ctypes.c_int,)
    return libggml
