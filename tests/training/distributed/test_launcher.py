"""What accelerate's config comes to: split or not, said or refused, as the variables of its launcher tell it.

A launch of two processes with a real YAML is in tests/stages/test_train_together.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aegis.config.settings import TrainConfig
from aegis.errors import UsageError
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.distributed.launcher import apply_launcher_config, asks_for_sharding, unsupported
from tests.conftest import Recorder

# what `accelerate launch` sets for a config that says FSDP and no more
FSDP = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_MIN_NUM_PARAMS": "100000000",
    "FSDP_FORWARD_PREFETCH": "false",
    "FSDP_USE_ORIG_PARAMS": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_SYNC_MODULE_STATES": "true",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
}
V1 = {"FSDP_VERSION": "1"}
SIZES = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}


class Two(ProcessGroup):
    """Process 0 of two, whose other one hears everything."""

    def _broadcast(self, value: Any) -> Any:
        return value


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainConfig]:
    """The config that a launch with these variables trains with."""

    def launch(variables: dict[str, str], group: ProcessGroup | None = None, **settings: Any) -> TrainConfig:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with apply_launcher_config(TrainConfig(**settings), group or Two(0, 2), torch.bfloat16) as config:
            # transformers would take part in it
            assert group is SINGLE or "ACCELERATE_USE_FSDP" not in os.environ
        assert os.environ.get("ACCELERATE_USE_FSDP") == variables.get("ACCELERATE_USE_FSDP")
        return config

    return launch


@pytest.mark.parametrize(
    ("variables", "splits"),
    [
        ({}, True),
        ({"FSDP_RESHARD_AFTER_FORWARD": "false"}, False),
        (V1, True),
        (V1 | {"FSDP_RESHARD_AFTER_FORWARD": "false"}, True),  # which version 1 does not read
        (V1 | {"FSDP_SHARDING_STRATEGY": "1"}, True),
        (V1 | {"FSDP_SHARDING_STRATEGY": "shard_grad_op"}, False),
        (V1 | {"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, False),
        (V1 | {"FSDP_SHARDING_STRATEGY": "3"}, False),
        (V1 | {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, True),
        (V1 | {"FSDP_SHARDING_STRATEGY": "5"}, False),
        (SIZES | {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}, True),
        (SIZES | {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2"}, False),
        ({"ACCELERATE_USE_FSDP": "false"}, False),
    ],
)
def test_weights_that_are_sharded_are_a_base_that_is_split(
    launched: Callable[..., TrainConfig], variables: dict[str, str], splits: bool
) -> None:
    assert asks_for_sharding(FSDP | variables) is splits
    config = launched(FSDP | variables, max_steps=7)
    assert config == TrainConfig(max_steps=7, shard_base=splits)


def test_what_was_given_wins(launched: Callable[..., TrainConfig], reporter: Recorder) -> None:
    assert launched(FSDP, shard_base=False).shard_base is False
    assert "FSDP (shard_base is set to false)" in reporter.warned[-1]
    assert launched({}, shard_base=True).shard_base is True
    assert launched(FSDP | V1 | {"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, shard_base=True).shard_base is True
    assert len(reporter.warned) == 1
    # a run that goes on has all its settings from its checkpoint
    assert launched(FSDP, **TrainConfig().model_dump()).shard_base is False


def test_one_process_is_as_without_a_launcher(launched: Callable[..., TrainConfig], reporter: Recorder) -> None:
    for variables in (FSDP | {"FSDP_OFFLOAD_PARAMS": "true"}, {"ACCELERATE_USE_DEEPSPEED": "true"}):
        assert launched(variables, SINGLE) == TrainConfig()
    assert not reporter.said + reporter.warned


HALF = {"FSDP_RESHARD_AFTER_FORWARD": "false"}
RECOMPUTED = {"FSDP_ACTIVATION_CHECKPOINTING": "true"}
OFFLOADED = {"FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "true"}


@pytest.mark.parametrize(
    ("variables", "settings", "names"),
    [
        ({}, {}, []),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, ["fsdp_offload_params"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, []),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, {}, ["mixed_precision fp16"]),
        ({"ACCELERATE_MIXED_PRECISION": "fp8", "ACCELERATE_USE_FSDP": ""}, {}, ["mixed_precision fp8"]),
        ({"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}, {}, []),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, ["fsdp_auto_wrap_policy SIZE_BASED_WRAP"]),
        ({"FSDP_IGNORED_MODULES": "lm_head"}, {}, ["fsdp_ignored_modules"]),
        (HALF, {}, ["fsdp_reshard_after_forward false"]),
        (V1 | {"FSDP_SHARDING_STRATEGY": "2"}, {}, ["fsdp_sharding_strategy SHARD_GRAD_OP"]),
        (V1 | {"FSDP_SHARDING_STRATEGY": "NO_SHARD"}, {}, []),
        (V1 | {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD"}, {}, []),
        (
            V1 | {"FSDP_SHARDING_STRATEGY": "HYBRID_SHARD", "LOCAL_WORLD_SIZE": "1"},
            {},
            ["fsdp_sharding_strategy HYBRID_SHARD"],
        ),
        (
            SIZES | {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"},
            {},
            ["parallelism_config_dp_replicate_size 2"],
        ),
        (RECOMPUTED, {}, []),  # all layers of a base that is split are
        (HALF | RECOMPUTED, {}, ["fsdp_reshard_after_forward false", "fsdp_activation_checkpointing"]),
        (HALF | RECOMPUTED, {"activation_checkpointing": "on"}, ["fsdp_reshard_after_forward false"]),
        (OFFLOADED, {}, ["fsdp_activation_checkpointing_offload"]),
        (OFFLOADED, {"activation_checkpointing": "offload"}, []),
    ],
)
def test_what_is_not_done_is_said_in_one_line(
    launched: Callable[..., TrainConfig],
    reporter: Recorder,
    variables: dict[str, str],
    settings: dict[str, Any],
    names: list[str],
) -> None:
    config = launched(FSDP | variables, **settings)
    found = unsupported(FSDP | variables, config, torch.bfloat16)
    assert [text.partition(" (")[0] for text in found] == names
    assert reporter.warned == ([f"in accelerate's config, but not done: {'; '.join(found)}"] if found else [])


@pytest.mark.parametrize(
    ("variables", "settings", "said"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}, "DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, {}, "Megatron-LM"),
        (SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "2"}, {}, "parallelism_config_tp_size 2"),
        (SIZES | {"PARALLELISM_CONFIG_CP_SIZE": "2"}, {}, "parallelism_config_cp_size 2"),
        (SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "two"}, {}, "parallelism_config_tp_size in accelerate's config"),
        (V1 | {"FSDP_SHARDING_STRATEGY": "SOME"}, {}, "fsdp_sharding_strategy in accelerate's config is 'SOME'"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "full_shard"}, {}, "fsdp_reshard_after_forward in accelerate's config"),
        ({}, {"compile": "on"}, "recomputes its layers"),
        ({}, {"activation_checkpointing": "off"}, "--no-shard-base"),
    ],
)
def test_what_cannot_be_done_is_refused(
    launched: Callable[..., TrainConfig], variables: dict[str, str], settings: dict[str, Any], said: str
) -> None:
    """Given --shard-base or not: there would be another training than the one that was asked for."""
    with pytest.raises(UsageError) as refused:
        launched(FSDP | variables, **settings)
    assert said in str(refused.value)
    assert refused.value.exit_code == 2
    if not settings:
        with pytest.raises(UsageError):
            launched(FSDP | variables, shard_base=True)
