"""Runs a pipeline of steps over items in several threads, while the later steps keep the order of the items.

Reading, arithmetic, hashing and writing all release the interpreter's lock, so they run in parallel on two cores. One
thread takes an item through all steps: another core would hash it a third slower, because it would have to fetch the
data from the first core's cache. The number of threads bounds the memory.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
MAX_WORKERS = 8
_MAX_PENDING = 32
"""Maximum number of items that threads work on while the caller is busy with a finished one."""


class Scratch:
    """A thread's reusable memory: with new memory, page faults would take longer than casting a weight."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, tuple[int, ...], torch.dtype], Tensor] = {}

    def tensor(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor in the memory for `use`; the same tensor for the same use, shape and dtype."""
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
    """Takes an item through its steps: `work` at once, then each of `then` when the previous item has passed it."""

    def __init__(self, work: Step[Item], then: Sequence[Step[Item]]) -> None:
        self._work, self._then = work, then
        self._own = threading.local()

    def begin(self) -> None:
        """Prepare the calling thread."""
        # a worker's tensors are small: torch's helper threads would only wait for each other and for a core
        torch.set_num_threads(1)
        self._own.scratch = Scratch()

    def __call__(self, item: Item, before: Sequence[Future[None]], passed: Sequence[Future[None]]) -> None:
        scratch: Scratch = self._own.scratch
        self._work(item, scratch)
        for step, turn, done in zip(self._then, before, passed, strict=True):
            turn.result()
            step(item, scratch)
            done.set_result(None)


def _end_turns(passed: Sequence[Future[None]], _: Future[None]) -> None:
    """Cancel the steps that an item will not pass: it failed, or never began. No later item may pass them."""
    for turn in passed:
        turn.cancel()


def run_in_order(
    items: Iterable[Item],
    work: Step[Item],
    *then: Step[Item],
) -> Generator[Item, None, None]:
    """Run `work` on several items at once, then each of `then` on one item at a time, in the order of the items.

    Close the iterator (contextlib.closing) to stop early: each thread finishes its current item.

    Yields:
        Each item after its last step, in order.

    Raises:
        The first error that a step raised.
    """
    worker = _Worker(work, then)
    pending: deque[tuple[Item, Future[None]]] = deque()
    with ExitStack() as stack:
        # a worker's number of threads becomes the default of new threads
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        # at least two: one reads while the other computes
        pool = ThreadPoolExecutor(min(max(2, os.cpu_count() or 1), MAX_WORKERS), "work", worker.begin)
        stack.callback(pool.shutdown, cancel_futures=True)
        before: list[Future[None]] = [Future() for _ in then]
        for turn in before:
            turn.set_result(None)
        for item in items:
            if len(pending) == _MAX_PENDING:
                done, last = pending.popleft()
                last.result()
                yield done
            passed: list[Future[None]] = [Future() for _ in then]
            running = pool.submit(worker, item, before, passed)
            running.add_done_callback(partial(_end_turns, passed))
            pending.append((item, running))
            before = passed
        for done, last in pending:
            last.result()
            yield done
