"""What memory decides of a training: how many layers are parked or recomputed, and what of them the host keeps.

A plan compares the config's own way with its neighbours; training takes it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.messages import phrase
from aegis.training.distributed.group import local_world_size
from aegis.training.execution.options import (
    ExecutionOptions,
    compiles,
    host_bytes,
    offloaded_bytes,
    offloaded_tensors,
    usable_bytes,
)
from aegis.training.execution.pinned import can_pin
from aegis.training.planning.estimate import Estimate, MemoryEstimator, ShardedWeights

PROCESSES = (2, 3, 4, 8)
"""How many a base may be split over; the launcher knows, and a plan is made before it."""
PARKED_ANYWAY, _ANYWAY_BYTES = 3 / 8, 640 << 20
"""Of all layers, the part that "auto" parks in any case, and of the host's memory what that may take.

So much of a short window goes to and fro while the step is worked on: at 512 tokens a tenth of its memory for 3 % of
its time (README, Benchmarks). Measured on an H200, whose link is slow beside its arithmetic.
"""
OFFLOADABLE = 1 / 3
"""Of all layers, the part that is parked where memory is short: more of a long window would take longer than working
them out again does.
"""
_OFFLOADED_OF_HOST = 0.25
"""Of the host's free memory, the part that parked layers may take."""


@dataclass(frozen=True)
class MemoryPlan:
    """One way to train: this config's, or a neighbour of it. `recomputed` and `parked` count layers.

    Attributes:
        host_bytes: of the host's memory, for input embeddings that stay there and for what is offloaded or parked.
        attention_spared: that is attention's results as well.
        held: what each of `processes` has of a base that is split over them.
    """

    max_length: int
    checkpointed_layers: int
    offload_checkpoints: bool
    asked_for: bool
    memory: Estimate
    host_bytes: int = 0
    keep_attention: bool = False
    offloaded_layers: int = 0
    processes: int = 1
    held: ShardedWeights | None = None


class MemoryPlanner:
    """This config's way to train, and the next smaller and larger ones.

    Args:
        kind: "cuda" or "cpu".
        free_bytes: of the GPU's memory, what training may take, the base included; None if the GPU is not here and
            there is no cap.
        compiled: whether layers are; None where it is not known yet whether the GPU has the kernels for it.
        parks: whether layers may be parked.
    """

    def __init__(
        self,
        estimator: MemoryEstimator,
        config: TrainConfig,
        kind: str,
        free_bytes: int | None,
        *,
        compiled: bool | None = None,
        parks: bool = True,
    ) -> None:
        self._blueprint, self._config = estimator, config
        on_gpu = kind == "cuda"
        self.compiled = compiles(config, possible=on_gpu) if compiled is None else compiled
        self._parks = parks and self.compiled
        self._recomputed, self._offloaded = _asked_for(config, estimator.layers, on_gpu=on_gpu)
        # nobody asks a CPU for memory
        self._room = usable_bytes(free_bytes) if on_gpu and free_bytes is not None else sys.maxsize

    def neighbours(self) -> Iterator[MemoryPlan]:
        """The config's own first; half and twice its length; then the other end of recomputation.

        Of a base that is split: the config's own, in as many processes as there may be.
        """
        length = self._config.max_length
        if self._config.shard_base:
            yield from (self._split(length, parts) for parts in PROCESSES)
            return
        own = self.chosen(length)
        yield own
        yield replace(self.chosen(max(8, length // 2)), asked_for=False)
        yield replace(self.chosen(2 * length), asked_for=False)
        yield self._variant(length, 0 if own.checkpointed_layers else self._blueprint.layers)

    def chosen(self, length: int) -> MemoryPlan:
        """The config's own way, for windows of `length` tokens; of "auto", the first that fits, or else the last."""
        if self._config.activation_checkpointing != "auto":
            return self._variant(length, self._recomputed, offload_checkpoints=self._offloaded, asked_for=True)
        for variant in self._from_quick_to_small(length):
            if self._fits(variant.memory):
                break
        return variant

    def _from_quick_to_small(self, length: int) -> Iterator[MemoryPlan]:
        """Some layers are parked in any case; then ever more, or ever more recomputed; at last all are offloaded."""
        layers, (offloaded_layers, most) = self._blueprint.layers, self._parkable(length)
        yield from (
            self._variant(length, 0, offloaded_layers=number, asked_for=True)
            for number in range(offloaded_layers, most + 1)
        )
        yield from (self._variant(length, number, asked_for=True) for number in range(1, layers + 1))
        yield self._variant(length, layers, offload_checkpoints=True, asked_for=True)

    def _fits(self, memory: Estimate) -> bool:
        return memory.peak <= self._room

    def _variant(
        self,
        length: int,
        checkpointed_layers: int,
        *,
        offload_checkpoints: bool = False,
        offloaded_layers: int = 0,
        asked_for: bool = False,
    ) -> MemoryPlan:
        spared = offload_checkpoints and self._spares_attention(length)
        memory = self._estimate(length, checkpointed_layers, offload_checkpoints, spared, offloaded_layers)
        host = self._blueprint.hosted_bytes + self._host_bytes(length, spared) * offload_checkpoints
        host += offloaded_layers * self._parked_bytes(length)
        return MemoryPlan(
            length, checkpointed_layers, offload_checkpoints, asked_for, memory, host, spared, offloaded_layers
        )

    def _parkable(self, length: int) -> tuple[int, int]:
        """How many layers are parked in any case, and how many at most."""
        if not self._parks:
            return 0, 0
        layers, each = self._blueprint.layers, self._parked_bytes(length)
        room = int(_OFFLOADED_OF_HOST * _host_memory())
        anyway = min(int(PARKED_ANYWAY * layers), min(room, _ANYWAY_BYTES) // each)
        return anyway, max(anyway, min(int(OFFLOADABLE * layers), room // each))

    def _spares_attention(self, length: int) -> bool:
        """Whether what attention makes in all layers fits into half of the host's free memory, beside their inputs.

        On the GPU some of it is always on its way out or back.
        """
        if not self.compiled or self._host_bytes(length, True) > _host_memory() / 2:
            return False
        return self._fits(self._estimate(length, self._blueprint.layers, True, True))

    def _estimate(
        self, length: int, checkpointed_layers: int, offload_checkpoints: bool, spared: bool, offloaded_layers: int = 0
    ) -> Estimate:
        return self._blueprint.estimate(
            length,
            checkpointed_layers=checkpointed_layers,
            compiled=self.compiled,
            offload_checkpoints=offload_checkpoints,
            keep_attention=spared,
            offloaded_layers=offloaded_layers,
        )

    def _host_bytes(self, length: int, keep_attention: bool) -> int:
        tokens, itemsize = self._config.batch_size * length, self._blueprint.dtype.itemsize
        return host_bytes(self._blueprint.text, tokens, itemsize, keep_attention=keep_attention)

    def _parked_bytes(self, length: int) -> int:
        return offloaded_bytes(self._blueprint.text, self._config.batch_size * length, self._blueprint.dtype.itemsize)

    def _split(self, length: int, parts: int) -> MemoryPlan:
        checkpointed_layers, offload_checkpoints = self._recomputed, self._offloaded
        memory = self._blueprint.estimate(
            length, checkpointed_layers=checkpointed_layers, offload_checkpoints=offload_checkpoints, parts=parts
        )
        held = self._blueprint.held(parts)
        host = self._blueprint.hosted_bytes + self._host_bytes(length, False) * offload_checkpoints
        return MemoryPlan(
            length, checkpointed_layers, offload_checkpoints, True, memory, host, processes=parts, held=held
        )


def _host_memory() -> int:
    """Of what the host has free, the share of one process: all of a machine's look before any of them takes."""
    return int(psutil.virtual_memory().available) // local_world_size()


def fit_to_memory(
    acceleration: ExecutionOptions,
    config: TrainConfig,
    folder: Path,
    layers: int,
    device: torch.device,
    free_bytes: int | None,
) -> ExecutionOptions:
    """Return `acceleration` with what memory decides.

    Args:
        acceleration: as `Acceleration.choose` leaves it.
        folder: the base's, of which config.json is read.
        layers: of its decoder.
        free_bytes: of a GPU's memory, before the base was loaded.
    """
    on_gpu = device.type == "cuda"
    if not on_gpu or config.shard_base:
        checkpointed_layers, offload_checkpoints = _asked_for(config, layers, on_gpu=on_gpu)
        return replace(acceleration, checkpointed_layers=checkpointed_layers, offload_checkpoints=offload_checkpoints)
    estimator = MemoryEstimator(folder, config, "cuda", torch.cuda.get_device_capability(device))

    def own_way(*, parks: bool) -> MemoryPlan:
        planner = MemoryPlanner(estimator, config, "cuda", free_bytes, compiled=acceleration.compiled, parks=parks)
        return planner.chosen(config.max_length)

    own = own_way(parks=True)
    pieces = offloaded_tensors(estimator.text, config.batch_size * config.max_length, estimator.dtype.itemsize)
    if own.offloaded_layers and not can_pin(pieces * own.offloaded_layers):
        progress.warn(phrase("train.cannot_park", offloaded_layers=own.offloaded_layers))
        own = own_way(parks=False)
    return replace(
        acceleration,
        checkpointed_layers=own.checkpointed_layers,
        offload_checkpoints=own.offload_checkpoints,
        keep_attention=own.keep_attention,
        offloaded_layers=own.offloaded_layers,
    )


def _asked_for(config: TrainConfig, layers: int, *, on_gpu: bool) -> tuple[int, bool]:
    """How many layers the settings have recomputed, and whether offloaded, as far as no memory is asked."""
    wanted = config.activation_checkpointing
    # a split base's layers are whole while they are worked on only
    kept = wanted in ("off", "auto") and not config.shard_base
    return 0 if kept else layers, wanted == "offload" and on_gpu
