"""Reads what torchrun or `accelerate launch` set: the numbers of processes, and what this program does not do.

accelerate hands its config over in environment variables (accelerate/utils/launch.py), and its own objects read them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch

from aegis import progress
from aegis.errors import EnvironmentFault, UsageError
from aegis.messages import phrase

if TYPE_CHECKING:  # it imports this module
    from aegis.training.distributed.group import ProcessGroup

_PLUGINS = {
    "FSDP": "ACCELERATE_USE_FSDP",
    "DeepSpeed": "ACCELERATE_USE_DEEPSPEED",
    "Megatron-LM": "ACCELERATE_USE_MEGATRON_LM",
}
_PARALLELISM = ("dp_shard_size", "tp_size", "cp_size", "sp_size")
"""Sharded data, tensor, context and sequence parallelism; plain data parallelism is what this program does."""
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def world_size() -> int:
    """Number of processes that the launcher started for this training; 1 without a launcher.

    Raises:
        EnvironmentFault: WORLD_SIZE is not a number.
    """
    text = os.environ.get("WORLD_SIZE", "1")
    try:
        return max(1, int(text))
    except ValueError:
        raise EnvironmentFault("distributed.world_size", text=text) from None


def local_world_size() -> int:
    """Number of these processes on this machine, from the launcher's LOCAL_WORLD_SIZE."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def refuse_unsupported_launch(group: ProcessGroup, dtype: torch.dtype) -> None:
    """Check accelerate's config at the start of a training in several processes; process 0 reports for all.

    Args:
        dtype: the dtype that training computes in. Another `mixed_precision` has no effect, and a warning says so.

    Raises:
        UsageError: it asks for FSDP, DeepSpeed, Megatron-LM, or for a parallelism other than plain data parallelism.
    """
    if group.world_size > 1:
        group.broadcast(lambda: _refuse(dtype))


def unsupported() -> list[str]:
    """The names of what accelerate's config asks for and this program does not do."""
    from accelerate.utils import parse_flag_from_env

    def is_on(variable: str) -> bool:
        try:
            return bool(parse_flag_from_env(variable))
        except ValueError:  # neither yes nor no; accelerate's own programs leave the plugin out
            return False

    found = [name for name, variable in _PLUGINS.items() if is_on(variable)]
    return found + (_parallelism() if is_on("ACCELERATE_USE_PARALLELISM_CONFIG") else [])


def _parallelism() -> list[str]:
    from accelerate.parallelism_config import ParallelismConfig

    try:
        asked = ParallelismConfig()
    except ValueError as error:  # accelerate itself refuses these sizes
        return [f"parallelism_config ({error})"]
    sizes = {name: getattr(asked, name, 1) for name in _PARALLELISM}  # accelerate 1.10 has no sp_size
    return [f"parallelism_config_{name} {size}" for name, size in sizes.items() if size > 1]


def _refuse(dtype: torch.dtype) -> None:
    from accelerate.utils import parse_choice_from_env

    if found := unsupported():
        raise UsageError("launcher.unsupported", found=", ".join(found))
    precision = parse_choice_from_env("ACCELERATE_MIXED_PRECISION").lower()
    if precision != "no" and _DTYPES.get(precision) != dtype:  # accelerate sets "no" where nothing was chosen
        progress.warn(phrase("launcher.precision", wanted=precision, dtype=str(dtype).removeprefix("torch.")))
