"""The host and the GPU as values, so that a plan is a function of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch

from aegis.training.distributed.group import local_world_size
from aegis.training.execution.allocator import free_bytes
from aegis.training.execution.pinned import can_pin


@dataclass(frozen=True)
class Host:
    """The host's memory.

    Attributes:
        free_bytes: this process's share of the free memory. Every process of the machine measures before any of them
            allocates, so each takes an equal part.
        can_pin: whether pieces of these sizes, in bytes, can be pinned all at once.
    """

    free_bytes: int
    can_pin: Callable[[Iterable[int]], bool] = can_pin

    @classmethod
    def measure(cls) -> Host:
        """This machine, now."""
        return cls(int(psutil.virtual_memory().available) // local_world_size())


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        capability: its compute capability, (major, minor).
        free_bytes: what training may take of its memory, the base included.
    """

    capability: tuple[int, int]
    free_bytes: int

    @classmethod
    def measure(cls, device: torch.device) -> Gpu:
        """A GPU of this machine, now."""
        return cls(torch.cuda.get_device_capability(device), free_bytes(device))
