"""Keeps the last lines of llama.cpp's log for error messages, instead of printing them."""

from __future__ import annotations

import ctypes
from collections import deque
from functools import cache
from threading import Lock

_KEPT_LINES = 40

_callbacks: list[object] = []
_lock = Lock()


def captured_log() -> deque[str]:
    """Return the last lines that llama.cpp logged in this process; any thread may call this.

    The first call replaces the bindings' log callback, which would print errors over the progress bars. From then on
    the bindings leave this process's output alone while they load a model.
    """
    with _lock:  # two first calls would each have lines of their own, and llama.cpp writes only the later ones
        return _captured()


@cache
def _captured() -> deque[str]:
    import llama_cpp

    lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(level: int, text: bytes, user_data: object) -> None:
        if line := text.decode("utf-8", errors="replace").strip(" .\n"):
            lines.append(line)

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    # llama.cpp holds only a pointer: the callback must live as long as the process
    _callbacks.append(keep)
    _leave_output_alone()
    return lines


def _leave_output_alone() -> None:
    """Let the bindings not send the process's output to the null device while they load a model.

    They do so with `verbose=False`, for every thread, though llama.cpp prints only through its log. What another thread
    prints meanwhile would be lost; and of two loads that overlap, the second would restore the null device for ever.
    """
    from llama_cpp._utils import suppress_stdout_stderr

    suppress_stdout_stderr.__enter__ = lambda self: self
    suppress_stdout_stderr.__exit__ = lambda self, *_: None
