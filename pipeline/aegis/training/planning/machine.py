"""The host and the GPU as values, so that a plan is a function of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch

from aegis.config.train_settings import TrainConfig
from aegis.model.device import free_bytes
from aegis.training.distributed.launcher import local_world_size
from aegis.training.execution.pinned_memory import can_pin
from aegis.training.planning.estimate import MemoryEstimator

_PROBE_SIZE, _PROBE_SECONDS = {"cuda": 8192, "cpu": 1024}, 0.3


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
        """Measure this machine's memory now."""
        return cls(int(psutil.virtual_memory().available) // local_world_size())


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        capability: its compute capability, (major, minor).
        free_bytes: bytes of its memory that training may take, the base included.
    """

    capability: tuple[int, int]
    free_bytes: int

    @classmethod
    def measure(cls, device: torch.device) -> Gpu:
        """Measure a GPU of this machine now."""
        return cls(torch.cuda.get_device_capability(device), free_bytes(device))


def matrix_rate(device: torch.device) -> float:
    """Measure the floating-point operations per second of one large matrix product, in training's compute dtype."""
    size = _PROBE_SIZE[device.type]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    matrix = torch.ones(size, size, dtype=dtype, device=device)

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    matrix @ matrix
    wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_SECONDS:
        matrix @ matrix
        wait()
        count += 1
    return 2 * size**3 * count / (time.perf_counter() - began)


def flops_per_token(estimator: MemoryEstimator, recomputed: int, config: TrainConfig) -> float:
    """Return the FLOP per token of matrix products: forward, gradient of the input, and forward again if checkpointed.

    The base is frozen, so its own gradient needs no products; attention and adapter are not counted. A kept pass costs
    as much as a pass of the data, and there is one per `keep_every` of these.
    """
    passes = 1 + (1 / config.keep_every if config.keep_weight else 0)
    return 2.0 * estimator.matrix_parameters * (2 + recomputed / estimator.layers) * passes
