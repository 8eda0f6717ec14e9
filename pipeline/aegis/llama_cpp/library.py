"""Describes the installed llama.cpp library."""

from __future__ import annotations

from aegis.llama_cpp._log import captured_log
from aegis.messages import phrase


def describe_library() -> str:
    """Load the library, and return a text that says whether it was built for a GPU.

    Raises:
        ImportError, OSError, RuntimeError: it is not installed, or does not load.
    """
    import llama_cpp

    captured_log()
    return phrase("library.gpu") if llama_cpp.llama_supports_gpu_offload() else phrase("library.cpu")
