"""What accelerate's launcher was configured for, as far as it means something here.

`accelerate launch` hands its config over by environment variables (accelerate/utils/launch.py), which are read as its
own plugins would (accelerate/utils/dataclasses.py). FSDP that shards the weights splits the base (`shard_base`); of the
rest, what is not done here is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from pydantic import ValidationError

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.errors import UsageError
from aegis.messages import phrase, validation
from aegis.training.distributed.group import ProcessGroup

_FSDP = "ACCELERATE_USE_FSDP"
_STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
"""In the order of torch's numbers for them, which begin at 1."""
_YES, _NO = {"y", "yes", "t", "true", "on", "1"}, {"n", "no", "f", "false", "off", "0"}
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@contextmanager
def apply_launcher_config(config: TrainConfig, group: ProcessGroup, dtype: torch.dtype) -> Iterator[TrainConfig]:
    """The config, its base split if the launcher was configured for that and `shard_base` was not given.

    In one process nothing is read and nothing changed. Within the block the libraries do not see that FSDP was asked
    for: transformers would leave a part of the loading to it, in all processes but one.

    Args:
        dtype: that is computed in.

    Raises:
        UsageError: the launcher was configured for what cannot be done here.
    """
    if group.world_size == 1:
        yield config
        return
    if group.broadcast(lambda: _splits(config, os.environ, dtype)):
        config = _split(config)
    asked = os.environ.pop(_FSDP, None)
    try:
        yield config
    finally:
        if asked is not None:
            os.environ[_FSDP] = asked


def asks_for_sharding(environment: Mapping[str, str]) -> bool:
    """Whether the launcher was configured for a base in parts.

    Raises:
        UsageError: it was configured for more than data parallelism, or for nothing that is known.
    """
    _refuse_other_parallelism(environment)
    return _is_on(environment, _FSDP) and _strategy(environment)[0] in ("FULL_SHARD", "HYBRID_SHARD")


def unsupported(environment: Mapping[str, str], config: TrainConfig, dtype: torch.dtype) -> list[str]:
    """What the launcher was configured for and is not done: the setting's name and the reason, for each.

    Args:
        config: as it is trained with.
    """
    found = []
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no" and _DTYPES.get(precision) != dtype:  # accelerate says "no" where nothing was chosen
        found.append(phrase("launched.precision", wanted=precision, dtype=str(dtype).removeprefix("torch.")))
    if not _is_on(environment, _FSDP):
        return found
    strategy, setting = _strategy(environment)
    checkpointing = config.activation_checkpointing
    policy = environment.get("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP").upper()
    if config.shard_base:
        if strategy == "HYBRID_SHARD":
            found.append(phrase("launched.hybrid", setting=setting))
        if policy != "TRANSFORMER_BASED_WRAP":
            found.append(phrase("launched.wrap", policy=policy))
        if environment.get("FSDP_IGNORED_MODULES"):
            found.append(phrase("launched.ignored_modules"))
        if _is_on(environment, "FSDP_OFFLOAD_PARAMS"):
            found.append(phrase("launched.offload_params"))
    else:
        if asks_for_sharding(environment):
            found.append(phrase("launched.not_wanted"))
        elif strategy != "NO_SHARD":
            found.append(phrase("launched.whole", setting=setting))
        if _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING") and checkpointing not in ("on", "offload"):
            found.append(phrase("launched.checkpointing"))
    if _is_on(environment, "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD") and checkpointing != "offload":
        found.append(phrase("launched.offload_activations"))
    return found


def _splits(config: TrainConfig, environment: Mapping[str, str], dtype: torch.dtype) -> bool:
    """Whether the launcher has its way, said to people with what it has not."""
    split = asks_for_sharding(environment) and "shard_base" not in config.model_fields_set
    taken = _split(config) if split else config
    if split:
        progress.say(phrase("launched.splits"))
    if missing := unsupported(environment, taken, dtype):
        progress.warn(phrase("launched.unmet", settings="; ".join(missing)))
    return split


def _split(config: TrainConfig) -> TrainConfig:
    try:
        return TrainConfig.model_validate(config.model_dump(exclude_unset=True) | {"shard_base": True})
    except ValidationError as error:
        reason = validation.describe_validation_error(error.errors(include_url=False)[0])
        raise UsageError("launched.contradiction", reason=reason) from None


def _refuse_other_parallelism(environment: Mapping[str, str]) -> None:
    found = [
        name
        for name, variable in (("DeepSpeed", "ACCELERATE_USE_DEEPSPEED"), ("Megatron-LM", "ACCELERATE_USE_MEGATRON_LM"))
        if _is_on(environment, variable)
    ]
    found += [
        f"parallelism_config_{kind.lower()}_size {size}"
        for kind in ("TP", "CP", "SP")
        if (size := _size(environment, kind)) > 1
    ]
    if found:
        raise UsageError("launched.other_parallelism", found=", ".join(found))


def _strategy(environment: Mapping[str, str]) -> tuple[str, str]:
    """One of `_STRATEGIES`, and the setting that says so."""
    if environment.get("FSDP_VERSION", "1") == "1":
        text = environment.get("FSDP_SHARDING_STRATEGY", "FULL_SHARD").upper()
        by_number = {str(number): name for number, name in enumerate(_STRATEGIES, 1)}
        strategy = by_number.get(text, text)
        if strategy not in _STRATEGIES:
            raise UsageError(
                "launched.unknown_value", name="fsdp_sharding_strategy", text=text, known=", ".join(_STRATEGIES)
            )
        setting = f"fsdp_sharding_strategy {strategy}"
        if strategy == "HYBRID_SHARD" and environment.get("LOCAL_WORLD_SIZE") == environment.get("WORLD_SIZE"):
            strategy = "FULL_SHARD"  # on one machine they are the same
        return strategy, setting
    text = environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower()
    if text not in _YES | _NO:
        raise UsageError("launched.unknown_value", name="fsdp_reshard_after_forward", text=text, known="true, false")
    replicas, shards = _size(environment, "DP_REPLICATE"), _size(environment, "DP_SHARD")
    replicated = f"parallelism_config_dp_replicate_size {replicas}"
    if replicas > 1 and shards <= 1:
        return "NO_SHARD", replicated
    if text in _NO:
        return "SHARD_GRAD_OP", f"fsdp_reshard_after_forward {text}"
    return ("HYBRID_SHARD", replicated) if replicas > 1 else ("FULL_SHARD", f"fsdp_reshard_after_forward {text}")


def _size(environment: Mapping[str, str], kind: str) -> int:
    if not _is_on(environment, "ACCELERATE_USE_PARALLELISM_CONFIG"):
        return 1
    text = environment.get(f"PARALLELISM_CONFIG_{kind}_SIZE", "1")
    try:
        return int(text)
    except ValueError:
        name = f"parallelism_config_{kind.lower()}_size"
        raise UsageError("launched.unknown_value", name=name, text=text, known="1, 2, 3, …") from None


def _is_on(environment: Mapping[str, str], variable: str) -> bool:
    return environment.get(variable, "").lower() in _YES
