"""Run code that may never end, such as a stranger's chat template, and stop it when its time is up."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Stop(BaseException):
    """Raised inside the overdue thread; not an Exception, so the code cannot mean to catch it."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return `work()`, or raise TimeoutError after `seconds`.

    The work runs in a thread of its own and, when overdue, gets an exception raised in it at its next Python
    instruction. A single call into C that never returns cannot be stopped so; the thread is then left behind,
    as a daemon that does not keep the process alive.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work())
        except _Stop:
            pass
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="deadline", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(_Stop))
        thread.join(1.0)
        raise TimeoutError(f"not done after {seconds:g} s")
    if failure:
        raise failure[0]
    return outcome[0]
