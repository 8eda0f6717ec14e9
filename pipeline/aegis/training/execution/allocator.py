"""CUDA's allocator: how it grows, the cap on what it may hold, and the peak of what it held."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def let_segments_grow(device: torch.device) -> None:
    """Have the GPU's allocator lengthen what it has instead of taking new segments; a user's own settings stand.

    Near the card's limit more than a tenth of the memory lay idle between segments of fixed size. Linux only: CUDA has
    no such segments elsewhere.
    """
    told = "PYTORCH_ALLOC_CONF" in os.environ or "PYTORCH_CUDA_ALLOC_CONF" in os.environ
    if device.type == "cuda" and sys.platform == "linux" and not told:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def cap_bytes(gib: float | None, device: torch.device | None) -> int | None:
    """What `gib` GiB leave of a GPU's memory; None where that is no limit: not given, a CPU, a card that has no more.

    Args:
        device: None for a GPU that is not here.
    """
    if gib is None or (device is not None and device.type != "cuda"):
        return None
    cap = int(gib * 2**30)
    return cap if device is None or cap < _total_bytes(device) else None


@contextmanager
def capped(device: torch.device, gib: float | None) -> Iterator[float | None]:
    """Hold the GPU's allocator to `gib` GiB while the block runs; a lower limit that it has already stands.

    Yields:
        `gib` where it is a limit, else None.
    """
    cap = cap_bytes(gib, device)
    if cap is None:
        yield None
        return
    before = torch.cuda.get_per_process_memory_fraction(device)
    torch.cuda.set_per_process_memory_fraction(min(before, cap / _total_bytes(device)), device)
    try:
        yield gib
    finally:
        # what comes after training in this process was promised nothing
        torch.cuda.set_per_process_memory_fraction(before, device)


def _total_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def reset_peak(device: torch.device) -> None:
    """Start a new peak on a GPU; a CPU's cannot be reset."""
    if device.type == "cuda":
        torch.cuda.init()  # its statistics are refused before anything else has used the GPU
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """The most the GPU's allocator handed out; on a CPU the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)
