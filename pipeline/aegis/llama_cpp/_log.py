"""Keeps the last lines of llama.cpp's log for error messages, instead of printing them."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache

_KEPT_LINES = 40


@cache
def captured_log() -> deque[str]:
    """Return the last lines that llama.cpp logged in this process.

    The first call replaces the bindings' log callback, which would print errors over the progress bars.
    """
    import llama_cpp

    lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: object) -> None:
        if line := text.decode("utf-8", errors="replace").strip(" .\n"):
            lines.append(line)

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    # llama.cpp holds only a pointer: the callback must live as long as the process
    _callbacks.append(keep)
    return lines


_callbacks: list[object] = []
