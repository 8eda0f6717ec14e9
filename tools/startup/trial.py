"""`python trial.py FOLDER`: does llama.cpp's library in FOLDER run on this processor? Standard library only.

A prebuilt library may use instructions that this processor lacks; loading it proves nothing, so its kernels compute.
A failure is an exit code other than 0, a signal's among them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path

_F32, _Q8_0 = 0, 8
_LENGTH = 256

# what ggml-cpu.h calls ggml_from_float_t and ggml_vec_dot_t
_FromFloat = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int64)
_VecDot = ctypes.CFUNCTYPE(None, c_int, c_void_p, c_size_t, c_void_p, c_size_t, c_void_p, c_size_t, c_int)


def computes(folder: Path) -> bool:
    """Whether two dot products, plain and quantized, come out right: 256 x 1 x 2."""
    if sys.platform == "win32":
        os.add_dll_directory(str(folder))
    names = {"win32": "ggml-cpu.dll", "darwin": "libggml-cpu.dylib"}
    library = ctypes.CDLL(str(folder / names.get(sys.platform, "libggml-cpu.so")))
    library.ggml_cpu_init()
    # `struct ggml_type_traits_cpu` begins with its two functions
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(c_void_p * 2)
    return all(abs(_dot(library, kind) - 2 * _LENGTH) < 0.02 * _LENGTH for kind in (_F32, _Q8_0))


def _dot(library: ctypes.CDLL, kind: int) -> float:
    from_float, vec_dot = library.ggml_get_type_traits_cpu(kind).contents
    operands = []
    for value in (1.0, 2.0):
        plain, packed = (c_float * _LENGTH)(*[value] * _LENGTH), ctypes.create_string_buffer(4 * _LENGTH)
        if kind != _F32:
            _FromFloat(from_float)(ctypes.addressof(plain), ctypes.addressof(packed), _LENGTH)
        operands.append(plain if kind == _F32 else packed)
    result = c_float()
    one, two = (ctypes.addressof(operand) for operand in operands)
    _VecDot(vec_dot)(_LENGTH, ctypes.addressof(result), 0, one, 0, two, 0, 1)
    return result.value


if __name__ == "__main__":
    sys.exit(0 if computes(Path(sys.argv[1])) else 1)
