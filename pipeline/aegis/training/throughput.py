"""How fast training goes. The first steps count apart: kernels are compiled, loaded and recorded in them; looks at
held-out windows and saving do not count."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Throughput:
    """Tokens a second, since the last row and in all.

    Attributes:
        start_seconds: what the first steps took; 0 until they are over.
    """

    def __init__(self) -> None:
        self.start_seconds = 0.0
        self._began = self._since = time.perf_counter()
        self._tokens = self._tokens_since = 0

    def add_step(self, tokens: int) -> None:
        """One more step, of so many tokens."""
        self._tokens += tokens
        self._tokens_since += tokens

    def end_warmup(self) -> None:
        """The first steps are over."""
        now = time.perf_counter()
        self.start_seconds, self._began, self._tokens = now - self._began, now, 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in the block is no training."""
        began = time.perf_counter()
        yield
        passed = time.perf_counter() - began
        self._began += passed
        self._since += passed

    def rate(self) -> float:
        """Tokens a second since the last call."""
        now = time.perf_counter()
        rate = self._tokens_since / (now - self._since)
        self._since, self._tokens_since = now, 0
        return rate

    def overall_rate(self) -> float:
        """Tokens a second in all, without the first steps if they are over."""
        return self._tokens / (time.perf_counter() - self._began)
