"""THE seam to llama.cpp: nobody else starts a process, opens a GGUF or talks to its library.

Importing it loads neither torch nor the bindings: the converter and the quantizer are processes of their own,
and `Runtime` loads the bindings when it opens a file.
"""

from aegis.llama_cpp.convert import convert, refuse_code
from aegis.llama_cpp.gguf_file import GgufFile, fallback_tensors, trained_context
from aegis.llama_cpp.gguf_header import TensorInfo
from aegis.llama_cpp.library import describe_library
from aegis.llama_cpp.quantize import QUANT_TYPES, parse_quant, parse_tensor_type, quantize
from aegis.llama_cpp.runtime import Message, Runtime
from aegis.llama_cpp.server import serve
from aegis.llama_cpp.tree import find_tree, tree_at_hand

__all__ = [
    "QUANT_TYPES",
    "GgufFile",
    "Message",
    "Runtime",
    "TensorInfo",
    "convert",
    "describe_library",
    "fallback_tensors",
    "find_tree",
    "parse_quant",
    "parse_tensor_type",
    "quantize",
    "refuse_code",
    "serve",
    "trained_context",
    "tree_at_hand",
]
