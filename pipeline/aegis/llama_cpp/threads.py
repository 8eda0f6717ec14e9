"""The default number of threads for llama.cpp."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """Return the number of physical cores: a second thread per core does not make matrix products faster."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
