"""Decides whether a GPU has room for a finish: for its weights, and for the activations as they are kept without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aegis.config.train_settings import TrainConfig
from aegis.training.execution.allocator import usable_bytes
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.offload_or_checkpoint import MemoryPlan, MemoryPlanner


def has_room(
    config: TrainConfig,
    folder: Path,
    capability: tuple[int, int] | None,
    free_bytes: int | None,
    types: Mapping[str, str],
) -> bool:
    """Whether a training keeps its activations in a finish just as without one, and both fit a GPU.

    The weights of the file take more memory than those in NF4. A finish that nobody asked for must not make the steps
    before it slower, nor end a training for lack of memory.

    Args:
        folder: the base's; only its config.json is read.
        capability, free_bytes: the GPU's, as in `Gpu`; None if they are not known.
        types: see `MemoryEstimator`.
    """

    def plan(finish_types: Mapping[str, str] | None) -> MemoryPlan:
        estimator = MemoryEstimator(folder, config, "cuda", capability, finish_types)
        return MemoryPlanner(estimator, config, "cuda", free_bytes).chosen(config.max_length)

    without, finishing = plan(None), plan(types)
    fits = free_bytes is None or finishing.memory.peak <= usable_bytes(free_bytes)
    return fits and _activations(without) == _activations(finishing)


def _activations(plan: MemoryPlan) -> tuple[int, bool, bool, int]:
    return plan.checkpointed_layers, plan.offload_checkpoints, plan.keep_attention, plan.offloaded_layers
