"""How many threads llama.cpp computes with where nobody says."""

from __future__ import annotations

import os

import psutil


def default_threads() -> int:
    """The physical cores: a second thread per core makes matrix products no faster."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
