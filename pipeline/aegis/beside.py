"""Runs a function in a thread beside the caller's own work; the caller asks for its result, or its error, later."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_S = 0.2


class Beside(Generic[T]):
    """A function that is running in a thread of its own.

    The thread ends with the process: a caller who fails, or gets Ctrl-C, need not wait for it. It should spend its time
    outside of Python: in another process, in a library that releases the interpreter's lock, or with files.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self._future: Future[T] = Future()
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def result(self) -> T:
        """Wait for the end; return what the function returned, or raise what it raised."""
        # on Windows a wait without a limit would not see Ctrl-C
        while not wait([self._future], timeout=_LOOK_S).done:
            pass
        return self._future.result()

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)
