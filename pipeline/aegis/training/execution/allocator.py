"""CUDA's allocator: how it grows, how much it may hold, how much is free, and the peak of what it held."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

_MAX_FILLED, _MIN_SPARE_BYTES = 0.9, 2**29
"""The largest fraction of free memory that a plan may fill, and the bytes that it must leave: see `usable_bytes`."""


def let_segments_grow(device: torch.device) -> None:
    """Let the GPU's allocator extend its segments instead of adding new ones; the user's own settings win.

    Near the card's limit more than a tenth of the memory lay idle between segments of fixed size. CUDA has expandable
    segments on Linux only.
    """
    configured = "PYTORCH_ALLOC_CONF" in os.environ or "PYTORCH_CUDA_ALLOC_CONF" in os.environ
    if device.type == "cuda" and sys.platform == "linux" and not configured:
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def cap_bytes(gib: float | None, device: torch.device | None) -> int | None:
    """`gib` in bytes; None where it limits nothing: it is not given, the device is a CPU, or the card has no more.

    Args:
        device: None for a GPU that is not in this machine.
    """
    if gib is None or (device is not None and device.type != "cuda"):
        return None
    cap = int(gib * 2**30)
    return cap if device is None or cap < _total_bytes(device) else None


@contextmanager
def capped(device: torch.device, gib: float | None) -> Iterator[float | None]:
    """Limit the GPU's allocator to `gib` GiB while the block runs; a lower limit already in force stays.

    Yields:
        `gib` where it limits the allocator, else None.
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
        # the limit is the training's own, not the process's
        torch.cuda.set_per_process_memory_fraction(before, device)


def _total_bytes(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).total_memory)


def reset_peak(device: torch.device) -> None:
    """Reset the GPU's peak; nothing on a CPU, whose peak is not counted."""
    if device.type == "cuda":
        torch.cuda.init()  # torch refuses its statistics until something has used the GPU
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the GPU allocator's peak in bytes; on a CPU the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(psutil.Process().memory_info().rss)


def usable_bytes(free: int) -> int:
    """Bytes that a step may plan to use, given the free bytes.

    The allocator needs the rest for gaps between tensors. While a step is recorded as a CUDA graph, memory of the steps
    before it is still held as well: capped at 3 GiB, a step that was planned with 2.65 GiB asked for 3.05 then.
    """
    return min(int(_MAX_FILLED * free), free - _MIN_SPARE_BYTES)
