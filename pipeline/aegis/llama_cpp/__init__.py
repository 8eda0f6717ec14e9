"""The only room that uses llama.cpp: no other starts a process, opens a GGUF or calls its library.

Importing it loads neither torch nor the bindings: the converter and the quantizer run in processes of their own, and
`Runtime` loads the bindings when it opens a file.
"""

from aegis.llama_cpp.batched import BatchRuntime
from aegis.llama_cpp.begin_token import adds_begin_token, with_begin_token
from aegis.llama_cpp.chat_template import Message
from aegis.llama_cpp.convert import convert, prepared_converter, refuse_code, try_conversion
from aegis.llama_cpp.converter_tree import converter_at_hand, converter_digest, find_converter
from aegis.llama_cpp.gguf_file import MAX_CONTEXT, GgufFile, fallback_tensors, trained_context
from aegis.llama_cpp.gguf_header import TensorInfo, Value
from aegis.llama_cpp.imatrix import MIN_CHUNK_TOKENS, measure_importance, read_importance, refuse_foreign
from aegis.llama_cpp.imatrix_build import imatrix_tool, refuse_without_compiler
from aegis.llama_cpp.library import describe_library
from aegis.llama_cpp.loading import refuse_fatal
from aegis.llama_cpp.prepared_tool import PreparedTool
from aegis.llama_cpp.quantize import (
    IMATRIX_TYPES,
    QUANT_TYPES,
    file_type_of,
    parse_quant,
    parse_tensor_type,
    quantize,
    refuse_without_imatrix,
)
from aegis.llama_cpp.rendering import Raised, chat_text, chat_texts
from aegis.llama_cpp.row_quantizer import dequantize_rows, quantize_rows, row_bytes
from aegis.llama_cpp.runtime import Runtime
from aegis.llama_cpp.tensor_types import planned_types, tensor_types
from aegis.llama_cpp.threads import spared_threads

__all__ = [
    "IMATRIX_TYPES",
    "MAX_CONTEXT",
    "MIN_CHUNK_TOKENS",
    "QUANT_TYPES",
    "BatchRuntime",
    "GgufFile",
    "Message",
    "PreparedTool",
    "Raised",
    "Runtime",
    "TensorInfo",
    "Value",
    "adds_begin_token",
    "chat_text",
    "chat_texts",
    "convert",
    "converter_at_hand",
    "converter_digest",
    "dequantize_rows",
    "describe_library",
    "fallback_tensors",
    "file_type_of",
    "find_converter",
    "imatrix_tool",
    "measure_importance",
    "parse_quant",
    "parse_tensor_type",
    "planned_types",
    "prepared_converter",
    "quantize",
    "quantize_rows",
    "read_importance",
    "refuse_code",
    "refuse_fatal",
    "refuse_foreign",
    "refuse_without_compiler",
    "refuse_without_imatrix",
    "row_bytes",
    "spared_threads",
    "tensor_types",
    "trained_context",
    "try_conversion",
    "with_begin_token",
]
