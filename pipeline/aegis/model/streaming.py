"""Pieces on their way from disk to disk: many computed at once, each then passed from thread to thread in order.

Reading, arithmetic, hashing and writing all let go of the interpreter's lock, so they run side by side on two cores.
Memory is bounded by the number of slabs, which are used again and again.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
MOST_WORKERS = 8
_WAITING_SLABS = 8


class Slab:
    """Memory for one item, lent to each in turn: new memory costs more page faults than casting a weight takes time."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def tensor(self, use: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The memory for one use, as a tensor; the same one for the same use, shape and dtype."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(use)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[use] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype).reshape(shape)


def stream(
    items: Iterable[Item],
    work: Callable[[Item, Slab], None],
    *then: Callable[[Item, Slab], None],
) -> Generator[Item, None, None]:
    """Do `work` on several items at once, then each of `then` in a thread of its own, in the order of the items.

    Close the iterator (contextlib.closing) to stop early: threads end with what they have in hand.

    Yields:
        Each item once it has gone all the way, in order.

    Raises:
        Whatever an item met with first.
    """
    workers = min(os.cpu_count() or 1, MOST_WORKERS)
    free = [Slab() for _ in range(workers + _WAITING_SLABS)]
    under_way: deque[tuple[Item, Slab, Future[None]]] = deque()
    with ExitStack() as stack:
        stack.callback(_restore_threads)
        pools = [ThreadPoolExecutor(workers, "work", _one_thread), *(ThreadPoolExecutor(1, "lane") for _ in then)]
        for pool in pools:
            stack.callback(pool.shutdown, cancel_futures=True)
        for item in items:
            if not free:
                done, slab, last = under_way.popleft()
                last.result()
                free.append(slab)
                yield done
            slab = free.pop()
            last = pools[0].submit(work, item, slab)
            for pool, step in zip(pools[1:], then, strict=True):
                last = pool.submit(_after, last, step, item, slab)
            under_way.append((item, slab, last))
        for done, _, last in under_way:
            last.result()
            yield done


def _after(previous: Future[None], step: Callable[[Item, Slab], None], item: Item, slab: Slab) -> None:
    previous.result()
    step(item, slab)


def _one_thread() -> None:
    # a worker's own tensors are small: torch's helpers would spend their time waiting for each other and for a core
    torch.set_num_threads(1)


def _restore_threads() -> None:
    # a worker's number also became the one that threads begin with; this thread still has its own
    torch.set_num_threads(torch.get_num_threads())
