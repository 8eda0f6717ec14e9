"""Work that does not end is stopped; work that ends comes back as it was."""

from __future__ import annotations

import sys
import threading
import time

import pytest

from aegis.data.deadline import within


def test_results_and_errors_pass_through() -> None:
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError, match="x"):
        within(5, lambda: {}["x"])


def test_an_endless_loop_is_stopped_and_its_thread_ends() -> None:
    running = threading.active_count()

    def loop() -> None:
        while True:
            try:
                time.sleep(0)
            except Exception:
                continue

    with pytest.raises(TimeoutError):
        within(0.2, loop)
    deadline = time.monotonic() + 5
    while threading.active_count() > running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == running


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits")
def test_memory_is_refused_before_it_is_taken() -> None:
    """A string times a billion fails at once, and afterwards the limit is gone."""
    with pytest.raises(MemoryError):
        within(5, lambda: "a" * 10**9, memory_bytes=100 << 20)
    assert within(5, lambda: len("a" * 10**6), memory_bytes=100 << 20) == 10**6
    assert len(bytes(300 << 20)) == 300 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux limits")
def test_too_little_memory_for_anything_is_an_error_and_no_wait() -> None:
    """Not even the thread's own first allocations may hang the caller."""
    for memory_bytes in (0, 1 << 20, 30 << 20):
        with pytest.raises(MemoryError):
            within(5, lambda: "a" * 10**9, memory_bytes=memory_bytes)
