"""Measures tokens per second. The first steps, which compile, load and record kernels, count separately; evaluation
and saving do not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Tokens per second, since the last row and in all.

    Attributes:
        start_seconds: time of the first steps; 0 until they are over.
    """

    def __init__(self) -> None:
        self.start_seconds = 0.0
        self._began = self._since = time.perf_counter()
        self._tokens = self._tokens_since = 0

    def add_step(self, tokens: int) -> None:
        """Count one more step of `tokens` tokens."""
        self._tokens += tokens
        self._tokens_since += tokens

    def end_warmup(self) -> None:
        """Mark the end of the first steps."""
        now = time.perf_counter()
        self.start_seconds, self._began, self._tokens = now - self._began, now, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time of this block out."""
        began = time.perf_counter()
        yield
        passed = time.perf_counter() - began
        self._began += passed
        self._since += passed

    def rate(self) -> float:
        """Return the tokens per second since the last call."""
        now = time.perf_counter()
        rate = self._tokens_since / (now - self._since)
        self._since, self._tokens_since = now, 0
        return rate

    def overall_rate(self) -> float:
        """Return the tokens per second of all steps, without the first steps if they are over."""
        return self._tokens / (time.perf_counter() - self._began)
