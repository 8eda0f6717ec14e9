"""Looks at processes that a test did not start itself, and waits for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def runs(pid: int) -> bool:
    """Return whether the process still runs: one that has ended stays a zombie until its parent asks for its code."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(true: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
