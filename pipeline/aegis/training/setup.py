"""Builds the training state from a config: base, adapter, soul and optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.errors import EnvironmentFault, first_line
from aegis.messages import bilingual, phrase
from aegis.model.base import Base
from aegis.model.load import compute_dtype, load_base, silence_dropout
from aegis.model.lora import Coverage
from aegis.model.soul_hook import decoder_of, soul_hook
from aegis.training import checkpoint
from aegis.training.assemble import assemble
from aegis.training.distributed.group import SINGLE, ProcessGroup, local_world_size
from aegis.training.distributed.sharded_base import ShardedBase
from aegis.training.execution import allocator
from aegis.training.execution.install import install
from aegis.training.execution.options import ExecutionOptions
from aegis.training.finish import Finish
from aegis.training.planning.machine import Gpu, Host
from aegis.training.planning.planner import fit_to_memory
from aegis.training.state import TrainState
from aegis.training.update import make_optimizer


@contextmanager
def build_state(
    config: TrainConfig,
    base: Base,
    device: torch.device,
    resume_from: Path | None,
    group: ProcessGroup = SINGLE,
    finish: Finish | None = None,
) -> Iterator[TrainState]:
    """Load the base, attach the adapter, hook the soul while the block runs, and restore a checkpoint.

    Args:
        resume_from: the checkpoint to restore, or None.
        group: the processes that a sharded base is sharded over.
        finish: the finish that the memory must suffice for.

    Raises:
        EnvironmentFault: the GPU's memory is full, now or inside the block; the message names the settings to lower.
        UsageError: a configured target matches no module.
        IntegrityError: the checkpoint has other tensors than this training.
    """
    allocator.let_segments_grow(device)
    allocator.reset_peak(device)
    if config.gpu_memory_gib is not None and device.type != "cuda":
        progress.warn(phrase("train.nothing_to_cap"))
    with allocator.capped(device, config.gpu_memory_gib) as cap_gib, _oom_explained(config, cap_gib):
        dtype = compute_dtype(device)
        gpu = Gpu.measure(device) if device.type == "cuda" else None
        model, sharded = _load(config, base, device, dtype, group)
        silence_dropout(model)
        decoder: Any = decoder_of(model)
        layers = len(decoder.layers)
        options = ExecutionOptions.choose(config, model, device, dtype)
        types = None if finish is None else finish.recipe.types
        options = fit_to_memory(options, config, base.folder, layers, gpu, Host.measure(), types)
        progress.say(options.explain(layers))
        if config.cuda_graphs == "on" and not options.cuda_graphs:
            progress.warn(phrase("train.not_recordable"))
        model, lora_layers, soul, covered = assemble(
            model, config, device, dtype, base_name=base.name, revision=base.revision
        )
        _say_coverage(covered)
        install(options, model, config.max_length, sharded)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        state = TrainState(model, soul, lora_layers, make_optimizer(model, soul, config), scaler, options)
        if resume_from is not None:
            checkpoint.load(resume_from, state)
        with soul_hook(model, soul):
            yield state


def _load(
    config: TrainConfig, base: Base, device: torch.device, dtype: torch.dtype, group: ProcessGroup
) -> tuple[Any, ShardedBase | None]:
    if not config.shard_base:
        return load_base(base.folder, config.load_in, device), None
    # through the host's memory, because the base does not fit on one GPU
    with _share_of_cores():
        model = load_base(base.folder, config.load_in, torch.device("cpu"), dtype)
    decoder: Any = decoder_of(model)
    sharded = ShardedBase(decoder.layers, group.rank, group.world_size, device)
    progress.say(phrase("train.sharded", world_size=group.world_size))
    return nn.Module.to(model, device), sharded


@contextmanager
def _share_of_cores() -> Iterator[None]:
    """Quantize with this process's share of the cores: torchrun gives every process only one thread."""
    given = torch.get_num_threads()
    torch.set_num_threads(max(given, (os.cpu_count() or 1) // local_world_size()))
    try:
        yield
    finally:
        torch.set_num_threads(given)


def _say_coverage(rows: list[Coverage]) -> None:
    for row in rows:
        progress.say(phrase("train.adapter_target", found=row.explain()))
    progress.say(phrase("train.adapter_total", parameters=sum(row.parameters for row in rows)))


@contextmanager
def _oom_explained(config: TrainConfig, cap_gib: float | None) -> Iterator[None]:
    try:
        yield
    except EnvironmentFault as error:
        if cap_gib is not None and isinstance(error.__cause__, torch.OutOfMemoryError):
            # the base ran out of memory while it was loaded, and the cap may be the reason
            raise error.with_fix(bilingual("train.raise_cap_for_base", cap=cap_gib)) from error.__cause__
        raise
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            "train.out_of_memory",
            error=first_line(error),
            max_length=config.max_length,
            batch_size=config.batch_size,
            activation_checkpointing=config.activation_checkpointing,
            or_cap="" if cap_gib is None else bilingual("train.or_raise_cap", cap=cap_gib),
        ) from error
