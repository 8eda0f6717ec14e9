"""Runs llama.cpp's quantizer dry, and reads the tensor types from what it prints. Run by _child.py."""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path

import llama_cpp

# "[   3/  67] blk.0.attn_q.weight - [ 256, 256, 1, 1], type =    f16, size =  0.12 MiB -> 0.04 MiB (q4_K)"
_LINE = re.compile(
    r"\[\s*\d+/\s*\d+\] (?P<name>\S+)\s+- \[.*?\], type =\s+(?P<before>\S+), size = [^\n]*?(?:\((?P<after>\w+)\))?\n"
)


def main(source: str, out: str, ftype: str, output_tensor_type: str, imatrix: str) -> int:
    """Write {tensor: type} as JSON to `out`; return 0 or llama.cpp's error code.

    Args:
        source: the GGUF to read.
        out: the file to write.
        ftype: the llama_ftype number.
        output_tensor_type: the ggml_type number for output.weight, or "" for llama.cpp's own choice.
        imatrix: not empty if there is an importance matrix; its values change no type.
    """
    printed: list[bytes] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def log(level: int, text: bytes, user_data: object) -> None:
        printed.append(text)

    llama_cpp.llama_log_set(log, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = int(ftype)
    parameters.dry_run = True
    if output_tensor_type:
        parameters.output_tensor_type = int(output_tensor_type)
    if imatrix:
        entries = (llama_cpp.llama_model_imatrix_data * 2)()
        values = (ctypes.c_float * 1)(1.0)
        entries[0].name, entries[0].data, entries[0].size = b"any", values, 1
        parameters.imatrix = entries
    code = int(llama_cpp.llama_model_quantize(source.encode(), b"", ctypes.byref(parameters)))
    text = b"".join(printed).decode("utf-8", errors="replace")
    if code:
        sys.stdout.write(text)
        return code
    types = {line["name"]: (line["after"] or line["before"]).upper() for line in _LINE.finditer(text)}
    Path(out).write_text(json.dumps(types), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
