"""llama.cpp's library as this installation has it."""

from __future__ import annotations

from aegis.llama_cpp._log import captured_log
from aegis.messages import phrase


def describe_library() -> str:
    """Load the library and say what it was built for.

    Raises:
        ImportError, OSError, RuntimeError: it is not there, or does not load.
    """
    import llama_cpp

    captured_log()
    return phrase("library.gpu") if llama_cpp.llama_supports_gpu_offload() else phrase("library.cpu")
