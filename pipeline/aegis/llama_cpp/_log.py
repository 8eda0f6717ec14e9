"""llama.cpp's log: kept for errors instead of printed."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache

_KEPT_LINES = 40


@cache
def captured_log() -> deque[str]:
    """The last lines llama.cpp logged in this process. The first call takes the log over from the bindings,
    which would print its errors over the progress bars."""
    import llama_cpp

    lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: object) -> None:
        if line := text.decode("utf-8", errors="replace").strip(" .\n"):
            lines.append(line)

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    # llama.cpp holds a bare pointer: the callback has to live as long as the process
    _callbacks.append(keep)
    return lines


_callbacks: list[object] = []
