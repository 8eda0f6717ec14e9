"""Runs functions in threads in the background of their caller, who asks for their results, or errors, later."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")
_LOOK_S = 0.2


class Background(Generic[T]):
    """A function that is running in a thread of its own.

    It should spend its time outside of Python: in another process, with files, or in a library that releases the
    interpreter's lock. The thread ends with the process, so a caller who fails, or gets Ctrl-C, need not wait for it.
    But a process must not end while a thread is inside llama.cpp: there a `with` block stops the function at its end.

    Args:
        stop: set when a `with` block ends, which then waits; the function must look at it from time to time.
    """

    def __init__(self, function: Callable[[], T], stop: threading.Event | None = None) -> None:
        self._future: Future[T] = Future()
        self._stop = stop
        threading.Thread(target=self._run, args=(function,), daemon=True).start()

    def end(self) -> None:
        """Ask the function to stop, and wait for it; its result and its error are dropped."""
        if self._stop is not None:
            self._stop.set()
        self._wait()

    @property
    def is_over(self) -> bool:
        """Whether the function has returned or raised."""
        return self._future.done()

    def result(self) -> T:
        """Wait for the end; return what the function returned, or raise what it raised."""
        self._wait()
        return self._future.result()

    def __enter__(self) -> Background[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stop is not None:
            self.end()

    def _wait(self) -> None:
        # on Windows a wait without a limit would not see Ctrl-C
        while not wait([self._future], timeout=_LOOK_S).done:
            pass

    def _run(self, function: Callable[[], T]) -> None:
        try:
            self._future.set_result(function())
        except BaseException as error:
            self._future.set_exception(error)


def stop_if_asked(stop: threading.Event | None) -> None:
    """End a function whose `stop` is set, by an error that its `Background` drops.

    Raises:
        InterruptedError: it is set.
    """
    if stop is not None and stop.is_set():
        raise InterruptedError


def two_at_a_time(functions: Iterable[Callable[[], T]], stop: threading.Event | None = None) -> Iterator[T]:
    """Yield the functions' results in their order; while the caller waits for one, it and the next one run.

    Args:
        stop: set at the end, also when a function fails or the iterator is closed; those that run look at it, and are
            waited for. Without it, they run on.
    """
    running: deque[Background[T]] = deque()
    try:
        for function in functions:
            running.append(Background(function, stop))
            if len(running) == 2:
                yield _first_result(running)
        while running:
            yield _first_result(running)
    finally:
        if stop is not None:
            for left in running:
                left.end()


def _first_result(running: deque[Background[T]]) -> T:
    """Wait for the first one's result; it leaves the queue only then, as Ctrl-C may end the wait."""
    result = running[0].result()
    running.popleft()
    return result
