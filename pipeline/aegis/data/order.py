"""Chooses the windows of each step, as a pure function of the seed and the step: resuming needs no iterator state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the numbers 0 to count - 1, shuffled by sorting on a hash (SplitMix64) of seed, epoch and number.

    numpy and Python may change their shuffles, and a run that resumes with a newer version must see the same rows.
    """
    with np.errstate(over="ignore"):
        start = _mix(_mix(np.array([seed], np.uint64)) ^ np.array([epoch], np.uint64))
        keys = _mix(np.arange(count, dtype=np.uint64) ^ start)
    return np.argsort(keys, kind="stable")


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


_permutation = lru_cache(maxsize=2)(permutation)  # a batch is in one epoch or in two


@dataclass(frozen=True)
class Order:
    """Endless epochs over `windows` windows; each has its own order and follows the previous one without a gap."""

    windows: int
    seed: int

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ValueError("an order needs at least one window")

    def indices(self, step: int, batch_size: int) -> list[int]:
        """Return the windows of step `step`, counted from 0; `batch_size` includes gradient accumulation."""
        return [
            int(_permutation(self.windows, self.seed, number // self.windows)[number % self.windows])
            for number in range(step * batch_size, (step + 1) * batch_size)
        ]
