"""`python trial.py FOLDER`: does llama.cpp's library in FOLDER run on this processor? Standard library only.

A prebuilt library may use instructions that this processor lacks; loading it proves nothing, so its kernels compute.
A failure is an exit code other than 0, a signal's among them.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_F32, _Q8_0 = 0, 8
_LENGTH = 256


# what ggml-cpu.h calls ggml_from_float_t and ggml_vec_dot_t
_FromFloat = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
_Pointer, _Size = ctypes.c_void_p, ctypes.c_size_t
_VecDot = ctypes.CFUNCTYPE(None, ctypes.c_int, _Pointer, _Size, _Pointer, _Size, _Pointer, _Size, ctypes.c_int)


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits_cpu` of ggml-cpu.h."""

    _fields_ = (
        ("from_float", _FromFloat),
        ("vec_dot", _VecDot),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


def computes(folder: Path) -> bool:
    """Whether two dot products, plain and quantized, come out right: 256 x 1 x 2."""
    if sys.platform == "win32":
        os.add_dll_directory(str(folder))
        name = "ggml-cpu.dll"
    else:
        name = "libggml-cpu.dylib" if sys.platform == "darwin" else "libggml-cpu.so"
    library = ctypes.CDLL(str(folder / name))
    library.ggml_cpu_init()
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_Traits)
    ones, twos = (ctypes.c_float * _LENGTH)(*[1.0] * _LENGTH), (ctypes.c_float * _LENGTH)(*[2.0] * _LENGTH)
    results = []
    for kind in (_F32, _Q8_0):
        traits = library.ggml_get_type_traits_cpu(kind).contents
        operands = []
        for values in (ones, twos):
            packed = ctypes.create_string_buffer(4 * _LENGTH)
            if kind == _F32:
                ctypes.memmove(packed, values, 4 * _LENGTH)
            else:
                traits.from_float(ctypes.addressof(values), ctypes.addressof(packed), _LENGTH)
            operands.append(packed)
        result = ctypes.c_float()
        one, two = (ctypes.addressof(operand) for operand in operands)
        traits.vec_dot(_LENGTH, ctypes.addressof(result), 0, one, 0, two, 0, 1)
        results.append(result.value)
    wanted = 2.0 * _LENGTH
    return all(abs(value - wanted) < 0.01 * wanted for value in results)


if __name__ == "__main__":
    sys.exit(0 if computes(Path(sys.argv[1])) else 1)
