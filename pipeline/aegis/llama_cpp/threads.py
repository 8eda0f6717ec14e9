"""The number of threads for llama.cpp."""

from __future__ import annotations

import os

import psutil

_SPARED = 2


def default_threads() -> int:
    """Return the number of physical cores: a second thread per core does not make matrix products faster."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1


def spared_threads() -> int:
    """Return the number of threads beside other work: llama.cpp's threads spin, and wait for the slowest of them."""
    return max(1, default_threads() - _SPARED)
