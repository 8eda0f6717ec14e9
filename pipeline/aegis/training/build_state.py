"""Builds the training state from a config: base, adapter, soul and optimizer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.errors import EnvironmentFault, first_line
from aegis.messages import bilingual, phrase
from aegis.model.base import Base
from aegis.model.load import compute_dtype, load_base, silence_dropout
from aegis.model.lora_targets import Coverage
from aegis.model.soul_hook import decoder_of, soul_hook
from aegis.training import checkpoint
from aegis.training.adapter_and_soul import assemble
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.distributed.hand_over import handed_over
from aegis.training.distributed.launcher import local_world_size
from aegis.training.distributed.sharded_base import shard_base
from aegis.training.execution import allocator
from aegis.training.execution.apply_options import apply_options
from aegis.training.execution.compiler_choices import compiler_at_work
from aegis.training.execution.options import ExecutionOptions
from aegis.training.finish import Finish
from aegis.training.optimizer import make_optimizer
from aegis.training.planning.machine import Gpu, Host
from aegis.training.planning.options_that_fit import fit_to_memory
from aegis.training.state import TrainState


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
        resume_from: the checkpoint to restore, which process 0 has; or None.
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
        model = _load(config, base, device, dtype)
        silence_dropout(model)
        together = (config.shard_processes or group.world_size) if config.shard_base else 1
        options = _execution_options(config, model, base, device, gpu, finish, together)
        place = partial(_shard, config, device, group, together) if config.shard_base else None
        model, lora_layers, soul, covered = assemble(
            model, config, device, dtype, base_name=base.name, revision=base.revision, place=place
        )
        _say_coverage(covered)
        apply_options(options, model, config.max_length)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        state = TrainState(model, soul, lora_layers, make_optimizer(model, soul, config), scaler, options)
        with compiler_at_work() if options.compiled else nullcontext(), soul_hook(model, soul):
            if resume_from is not None:
                with handed_over(group, resume_from) as folder:
                    checkpoint.load(folder, state)
            yield state


def _execution_options(
    config: TrainConfig,
    model: Any,
    base: Base,
    device: torch.device,
    gpu: Gpu | None,
    finish: Finish | None,
    together: int,
) -> ExecutionOptions:
    """Choose the options that fit this machine's memory, and print them."""
    decoder: Any = decoder_of(model)
    layers = len(decoder.layers)
    types = None if finish is None else finish.recipe.types
    options = ExecutionOptions.choose(config, model, device, compute_dtype(device))
    options = fit_to_memory(options, config, base.folder, layers, gpu, Host.measure(), types, together)
    progress.say(options.explain(layers))
    if config.cuda_graphs == "on" and not options.cuda_graphs:
        progress.warn(phrase("train.not_recordable"))
    return options


def _load(config: TrainConfig, base: Base, device: torch.device, dtype: torch.dtype) -> Any:
    if not config.shard_base:
        return load_base(base.folder, config.load_in, device)
    # through the host's memory, because the base does not fit on one GPU
    with _share_of_cores():
        return load_base(base.folder, config.load_in, torch.device("cpu"), dtype)


def _shard(config: TrainConfig, device: torch.device, group: ProcessGroup, together: int, model: Any) -> None:
    shard_base(model, device, group.world_size, together, offload=config.shard_offload)
    progress.say(phrase("train.sharded", together=together))


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
