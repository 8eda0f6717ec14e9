"""Pieces on their way from disk to disk: several at once, each in one thread all the way, taking turns in their order.

Reading, arithmetic, hashing and writing all let go of the interpreter's lock, so they run side by side on two cores.
A piece keeps its thread because what one core has written another hashes a third slower, line by line out of the
first one's cache. Memory is bounded by the number of threads.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
MAX_WORKERS = 8
_LINED_UP = 32
"""Items that threads can go on with while the caller is busy with one that has gone all the way."""


class Scratch:
    """A thread's memory for the item in hand: new memory costs more page faults than casting a weight takes time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def tensor(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The memory for one use, as a tensor; the same one for the same use, shape and dtype."""
        tensor = self._seen.get((use, shape, dtype))
        if tensor is None:
            size = math.prod(shape) * dtype.itemsize
            buffer = self._buffers.get(use)
            if buffer is None or buffer.numel() < size:
                buffer = self._buffers[use] = torch.empty(size, dtype=torch.uint8)
                self._seen = {known: seen for known, seen in self._seen.items() if known[0] != use}
            tensor = self._seen[use, shape, dtype] = buffer[:size].view(dtype).reshape(shape)
        return tensor


Step: TypeAlias = Callable[[Item, Scratch], None]


class _Worker(Generic[Item]):
    """What each thread does with an item: `work` at once, then each of `then` when the item before has had it."""

    def __init__(self, work: Step[Item], then: Sequence[Step[Item]]) -> None:
        self._work, self._then = work, then
        self._own = threading.local()

    def begin(self) -> None:
        """Prepare the thread that calls it."""
        # a worker's own tensors are small: torch's helpers would spend their time waiting for each other and for a core
        torch.set_num_threads(1)
        self._own.scratch = Scratch()

    def __call__(self, item: Item, before: Sequence[Future[None]], passed: Sequence[Future[None]]) -> None:
        scratch: Scratch = self._own.scratch
        try:
            self._work(item, scratch)
            for step, turn, done in zip(self._then, before, passed, strict=True):
                turn.result()
                step(item, scratch)
                done.set_result(None)
        except BaseException as error:
            # nothing that comes after it may pass where this one did not
            for done in passed:
                if not done.done():
                    done.set_exception(error)
            raise


def run_in_order(
    items: Iterable[Item],
    work: Step[Item],
    *then: Step[Item],
) -> Generator[Item, None, None]:
    """Do `work` on several items at once, then each of `then` on one at a time, in the order of the items.

    Close the iterator (contextlib.closing) to stop early: threads end with what they have in hand.

    Yields:
        Each item once it has gone all the way, in order.

    Raises:
        Whatever an item met with first.
    """
    go = _Worker(work, then)
    under_way: deque[tuple[Item, Future[None]]] = deque()
    with ExitStack() as stack:
        stack.callback(_restore_threads)
        # two at least: one reads while the other computes
        pool = ThreadPoolExecutor(min(max(2, os.cpu_count() or 1), MAX_WORKERS), "work", go.begin)
        stack.callback(pool.shutdown, cancel_futures=True)
        before: list[Future[None]] = [Future() for _ in then]
        for turn in before:
            turn.set_result(None)
        for item in items:
            if len(under_way) == _LINED_UP:
                done, last = under_way.popleft()
                last.result()
                yield done
            passed: list[Future[None]] = [Future() for _ in then]
            under_way.append((item, pool.submit(go, item, before, passed)))
            before = passed
        for done, last in under_way:
            last.result()
            yield done


def _restore_threads() -> None:
    # a worker's number also became the one that threads begin with; this thread still has its own
    torch.set_num_threads(torch.get_num_threads())
