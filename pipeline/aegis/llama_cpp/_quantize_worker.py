"""Calls llama.cpp's quantizer, which may abort() on a bad file, so it needs its own process. Run by _child.py."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import llama_cpp


def main(source: str, out: str, ftype: str, output_tensor_type: str, threads: str, imatrix: str) -> int:
    """Quantize `source` into `out`; return 0 or llama.cpp's error code.

    Args:
        source: the GGUF to read.
        out: the GGUF to write, relative to the working directory and ASCII: llama.cpp opens it with the
            system's code page on Windows.
        ftype: the llama_ftype number.
        output_tensor_type: the ggml_type number for output.weight, or "" for llama.cpp's own choice.
        threads: number of threads; 0 for one per core.
        imatrix: an importance matrix, or "" for none.
    """

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, user_data: object) -> None:
        os.write(1, text)

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(ftype)  # its default is Q8_0
    parameters.nthread = int(threads)
    if output_tensor_type:
        parameters.output_tensor_type = int(output_tensor_type)
    if imatrix:
        # keep the array until the quantizer is done: it holds only pointers
        entries = _entries(Path(imatrix))
        parameters.imatrix = entries
    code = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(parameters))
    return int(code)


def _entries(path: Path) -> ctypes.Array[llama_cpp.llama_model_imatrix_data]:
    """Return the matrix in llama.cpp's form: an array that ends with an entry without a name."""
    from aegis.llama_cpp.imatrix import read_importance

    importance = read_importance(path)
    entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items(), strict=False):
        buffer = (ctypes.c_float * len(values)).from_buffer_copy(values.tobytes())
        entry.name, entry.data, entry.size = name.encode(), buffer, len(values)
    return entries


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
