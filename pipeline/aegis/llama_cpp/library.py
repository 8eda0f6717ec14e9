"""llama.cpp's library as this installation has it."""

from __future__ import annotations

from aegis.llama_cpp._log import captured_log


def describe_library() -> str:
    """Load the library and say what it was built for.

    Raises:
        ImportError, OSError, RuntimeError: it is not there, or does not load.
    """
    import llama_cpp

    captured_log()
    return "built with GPU support" if llama_cpp.llama_supports_gpu_offload() else "built for the CPU"
