"""Chooses what memory decides about a training's step: how activations are kept on this GPU and this host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.messages import phrase
from aegis.training.execution.activation_bytes import kept_tensor_bytes
from aegis.training.execution.options import ExecutionOptions
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.machine import Gpu, Host
from aegis.training.planning.offload_or_checkpoint import MemoryPlan, MemoryPlanner, configured_options


def fit_to_memory(
    options: ExecutionOptions,
    config: TrainConfig,
    folder: Path,
    layers: int,
    gpu: Gpu | None,
    host: Host,
    finish_types: Mapping[str, str] | None = None,
    world_size: int = 1,
) -> ExecutionOptions:
    """Return `options` with what memory decides.

    Args:
        options: from `ExecutionOptions.choose`.
        folder: the base's; only its config.json is read.
        layers: number of its decoder layers.
        gpu: measured before the base is loaded; None for a training on the CPU.
        finish_types: see `MemoryEstimator`.
        world_size: number of processes that the base is sharded over.
    """
    if gpu is None:
        configured = configured_options(config, layers, on_gpu=False, compiled=options.compiled)
        return _with_memory_of(configured, options)
    estimator = MemoryEstimator(folder, config, "cuda", gpu.capability, finish_types)

    def plan(*, can_offload: bool) -> MemoryPlan:
        how: dict[str, Any] = {"host": host, "compiled": options.compiled, "world_size": world_size}
        return MemoryPlanner(estimator, config, "cuda", gpu.free_bytes, can_offload=can_offload, **how).chosen(
            config.max_length
        )

    chosen = plan(can_offload=True)
    sizes = kept_tensor_bytes(estimator.text, config.batch_size * config.max_length, estimator.dtype.itemsize)
    if chosen.offloaded_layers and not host.can_pin(sizes * chosen.offloaded_layers):
        progress.warn(phrase("train.cannot_offload", offloaded_layers=chosen.offloaded_layers))
        chosen = plan(can_offload=False)
    return _with_memory_of(chosen, options)


def _with_memory_of(plan: MemoryPlan | ExecutionOptions, options: ExecutionOptions) -> ExecutionOptions:
    return replace(
        options,
        checkpointed_layers=plan.checkpointed_layers,
        offload_checkpoints=plan.offload_checkpoints,
        keep_attention=plan.keep_attention,
        offloaded_layers=plan.offloaded_layers,
    )
