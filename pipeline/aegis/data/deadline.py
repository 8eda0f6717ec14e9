"""Runs code within limits of time and memory, such as a stranger's chat template, which may never end."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from aegis.messages import phrase

T = TypeVar("T")

_BLOWS = 3


class _Stop(BaseException):
    """Raised inside the overdue thread; it is not an Exception, so ordinary code does not catch it."""


def within(seconds: float, work: Callable[[], T], *, memory_bytes: int | None = None) -> T:
    """Return `work()`, or raise TimeoutError after `seconds`.

    On Linux, an allocation that would take the process more than `memory_bytes` beyond its current size fails with
    MemoryError before the memory is touched: a template may multiply a string by a billion in one instruction.

    The work runs in its own thread; when its time is over, an exception is raised in the thread at its next Python
    instruction. This cannot stop a single call into C that never returns; the thread then remains as a daemon, which
    does not keep the process alive.

    Raises:
        TimeoutError: the time is over.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            # inside the thread: if a thread cannot get the memory to start, the thread that starts it waits for ever
            if memory_bytes is not None:
                _bound_memory(memory_bytes)
            outcome.append(work())
        except _Stop:
            pass
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="deadline", daemon=True)
    with _memory_limit_kept():
        thread.start()
        thread.join(seconds)
    if thread.is_alive():
        # Python drops an exception that is raised while it clears a weak reference, so try several times
        for _ in range(_BLOWS):
            if thread.is_alive():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
                thread.join(1.0)
        raise TimeoutError(phrase("deadline.overdue", seconds=seconds))
    if failure:
        raise failure[0]
    return outcome[0]


def _bound_memory(more_bytes: int) -> None:
    if sys.platform.startswith("linux"):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + more_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit if soft == resource.RLIM_INFINITY else min(limit, soft), hard))


@contextmanager
def _memory_limit_kept() -> Iterator[None]:
    """Restore the process's memory limit after the block."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
