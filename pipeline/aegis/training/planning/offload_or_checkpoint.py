"""Plans a training's memory: how many layers are offloaded or checkpointed, and what the host's memory keeps of them.

`aegis plan` compares the plan of a config with its neighbours; training follows it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, replace

from aegis.config.train_settings import TrainConfig
from aegis.training.execution.activation_bytes import (
    offloaded_checkpoint_bytes,
    offloaded_layer_bytes,
)
from aegis.training.execution.allocator import usable_bytes
from aegis.training.execution.options import ExecutionOptions, compiles
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.machine import Host
from aegis.training.planning.memory_parts import Estimate, ShardedWeights

WORLD_SIZES = (2, 3, 4, 8)
"""Numbers of processes that a plan shards a base over; the launcher decides, after the plan."""
_MIN_OFFLOADED, _MIN_OFFLOADED_BYTES = 3 / 8, 640 << 20
"""Fraction of all layers that "auto" always offloads, and the most host memory for it.

The copies of short windows take no longer than the step's computation: at 512 tokens offloading frees a tenth of the
memory and adds 3 % to the time. Measured on an H200, whose link is slow beside its arithmetic.
"""
_MAX_OFFLOADED = 1 / 3
"""Fraction of all layers that are offloaded where memory is short.

More layers of a long window would take longer to copy than to recompute.
"""
_MAX_HOST_SHARE = 0.25
"""Fraction of the host's free memory that offloaded layers may take."""


@dataclass(frozen=True)
class MemoryPlan:
    """One plan: the config's own, or a neighbour of it.

    Attributes:
        checkpointed_layers, offload_checkpoints, keep_attention, offloaded_layers: see `ExecutionOptions`.
        asked_for: whether this is the config's own plan.
        host_bytes: host memory for the input embeddings that stay there and for everything that is offloaded.
        processes: number of processes that a sharded base is sharded over.
        sharded: what each of them holds of it; None for a base that is not sharded.
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
    sharded: ShardedWeights | None = None


class MemoryPlanner:
    """Makes the plan of a config, and its neighbours.

    Args:
        kind: "cuda" or "cpu".
        free_bytes: GPU memory that training may take, the base included; None if there is no GPU here and no cap.
        host: measured now if it is not given.
        compiled: whether layers are compiled; None if it is not known whether the GPU has the kernels for it.
        can_offload: whether layers may be offloaded.
        world_size: number of processes that the base is sharded over.
    """

    def __init__(
        self,
        estimator: MemoryEstimator,
        config: TrainConfig,
        kind: str,
        free_bytes: int | None,
        *,
        host: Host | None = None,
        compiled: bool | None = None,
        can_offload: bool = True,
        world_size: int = 1,
    ) -> None:
        self._estimator, self._config, self._world_size = estimator, config, world_size
        self._host_free = (host or Host.measure()).free_bytes
        on_gpu = kind == "cuda"
        self.compiled = compiles(config, possible=on_gpu) if compiled is None else compiled
        self._can_offload = can_offload and self.compiled
        self._configured = configured_options(config, estimator.layers, on_gpu=on_gpu, compiled=self.compiled)
        # the limit holds for a GPU only
        self._max_peak = usable_bytes(free_bytes) if on_gpu and free_bytes is not None else sys.maxsize

    def neighbours(self) -> Iterator[MemoryPlan]:
        """The config's own plan; then half and twice its length; then all layers checkpointed, or none.

        For a sharded base: the config's own plan, for its number of processes or for several.
        """
        length = self._config.max_length
        if self._config.shard_base:
            together = self._config.shard_processes
            sizes = WORLD_SIZES if together is None else (together,)
            yield from (self._over(world_size).chosen(length) for world_size in sizes)
            return
        own = self.chosen(length)
        yield own
        yield replace(self.chosen(max(8, length // 2)), asked_for=False)
        yield replace(self.chosen(2 * length), asked_for=False)
        opposite = 0 if own.checkpointed_layers else self._estimator.layers
        yield replace(self._plan(length, self._options(checkpointed_layers=opposite)), asked_for=False)

    def chosen(self, length: int) -> MemoryPlan:
        """The config's own plan for windows of `length` tokens; "auto" takes the first that fits, or else the last."""
        if self._config.activation_checkpointing != "auto":
            return self._plan(length, self._with_attention(length, self._configured))
        for plan in self._from_fast_to_small(length):
            if plan.memory.peak <= self._max_peak:
                break
        return plan

    def _from_fast_to_small(self, length: int) -> Iterator[MemoryPlan]:
        """Some layers are always offloaded; then more and more; then more and more checkpointed; at last offloaded."""
        fewest, most = self._offloadable_layers(length)
        for number in range(fewest, most + 1):
            yield self._plan(length, self._options(offloaded_layers=number))
        layers = self._estimator.layers
        for number in range(1, layers + 1):
            yield self._plan(length, self._options(checkpointed_layers=number))
        last = self._options(checkpointed_layers=layers, offload_checkpoints=True)
        yield self._plan(length, self._with_attention(length, last))

    def _options(
        self, *, checkpointed_layers: int = 0, offload_checkpoints: bool = False, offloaded_layers: int = 0
    ) -> ExecutionOptions:
        return ExecutionOptions(
            compiled=self.compiled,
            checkpointed_layers=checkpointed_layers,
            offload_checkpoints=offload_checkpoints,
            offloaded_layers=offloaded_layers,
        )

    def _plan(self, length: int, options: ExecutionOptions) -> MemoryPlan:
        return MemoryPlan(
            max_length=length,
            checkpointed_layers=options.checkpointed_layers,
            offload_checkpoints=options.offload_checkpoints,
            asked_for=True,
            memory=self._estimate(length, options),
            host_bytes=self._host_bytes(length, options),
            keep_attention=options.keep_attention,
            offloaded_layers=options.offloaded_layers,
            processes=self._world_size,
            sharded=self._estimator.sharded_weights(self._world_size) if self._world_size > 1 else None,
        )

    def _estimate(self, length: int, options: ExecutionOptions) -> Estimate:
        return self._estimator.estimate(length, options, world_size=self._world_size)

    def _over(self, world_size: int) -> MemoryPlanner:
        planner = copy(self)
        planner._world_size = world_size
        return planner

    def _offloadable_layers(self, length: int) -> tuple[int, int]:
        """How many layers are always offloaded, and how many at most."""
        if not self._can_offload:
            return 0, 0
        layers, each = self._estimator.layers, offloaded_layer_bytes(*self._sizes(length))
        available = int(_MAX_HOST_SHARE * self._host_free)
        fewest = min(int(_MIN_OFFLOADED * layers), min(available, _MIN_OFFLOADED_BYTES) // each)
        return fewest, max(fewest, min(int(_MAX_OFFLOADED * layers), available // each))

    def _with_attention(self, length: int, options: ExecutionOptions) -> ExecutionOptions:
        """`options`, with attention's results offloaded beside the layers' inputs if there is memory for them.

        They may take half of the host's free memory together. On the GPU some of it is always being copied.
        """
        if not (options.offload_checkpoints and options.compiled):
            return options
        kept = replace(options, keep_attention=True)
        checkpoints = offloaded_checkpoint_bytes(*self._sizes(length), keep_attention=True)
        if checkpoints > self._host_free / 2 or self._estimate(length, kept).peak > self._max_peak:
            return options
        return kept

    def _host_bytes(self, length: int, options: ExecutionOptions) -> int:
        sizes = self._sizes(length)
        total = self._estimator.hosted_bytes + self._estimator.offloaded_shard(self._world_size)
        total += options.offloaded_layers * offloaded_layer_bytes(*sizes)
        if options.offload_checkpoints:
            total += offloaded_checkpoint_bytes(*sizes, keep_attention=options.keep_attention)
        return total

    def _sizes(self, length: int) -> tuple[object, int, int]:
        return self._estimator.text, self._config.batch_size * length, self._estimator.dtype.itemsize


def configured_options(config: TrainConfig, layers: int, *, on_gpu: bool, compiled: bool) -> ExecutionOptions:
    """The options that the settings ask for, before memory is considered."""
    setting = config.activation_checkpointing
    return ExecutionOptions(
        compiled=compiled,
        checkpointed_layers=0 if setting in ("off", "auto") else layers,
        offload_checkpoints=setting == "offload" and on_gpu,
    )
