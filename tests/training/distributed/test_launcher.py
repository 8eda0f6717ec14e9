"""Tests that the launcher's number of processes is read, and an unsupported config of accelerate refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from aegis.errors import UsageError
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.distributed.launcher import refuse_unsupported_launch, unsupported, world_size
from tests.conftest import Recorder

# the variables that `accelerate launch --multi_gpu` sets
PLAIN = {"ACCELERATE_MIXED_PRECISION": "no", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SIZES = {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}
UNSUPPORTED = [
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP"),
    ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DeepSpeed"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    (SIZES | {"PARALLELISM_CONFIG_DP_SHARD_SIZE": "2"}, "parallelism_config_dp_shard_size 2"),
    (SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "2"}, "parallelism_config_tp_size 2"),
    (SIZES | {"PARALLELISM_CONFIG_CP_SIZE": "2"}, "parallelism_config_cp_size 2"),
    (SIZES | {"PARALLELISM_CONFIG_SP_SIZE": "2"}, "parallelism_config_sp_size 2"),
    (
        SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "two"},
        "parallelism_config (invalid literal for int() with base 10: 'two')",
    ),
    (SIZES | {"PARALLELISM_CONFIG_TP_SIZE": "0"}, "parallelism_config (tp_size must be at least 1, but got 0)"),
]


@pytest.mark.parametrize(("size", "count"), [(None, 1), ("1", 1), ("0", 1), ("4", 4)])
def test_the_launcher_sets_the_world_size(monkeypatch: pytest.MonkeyPatch, size: str | None, count: int) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert world_size() == count


class Main(ProcessGroup):
    """Process 0 of two; the other one receives everything."""

    def _broadcast(self, value: Any) -> Any:
        return value


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Check a launch with these variables and no others of accelerate's."""

    def check(variables: dict[str, str], group: ProcessGroup | None = None) -> None:
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_", "PARALLELISM_"))]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        refuse_unsupported_launch(group or Main(0, 2), torch.bfloat16)

    return check


@pytest.mark.parametrize(("variables", "name"), UNSUPPORTED)
def test_unsupported_parallelism_is_refused_by_its_name(
    launch: Callable[..., None], variables: dict[str, str], name: str
) -> None:
    """Exit code 2, and --shard-base as the way for a large base."""
    with pytest.raises(UsageError) as refused:
        launch(PLAIN | variables)
    assert unsupported() == [name]
    assert refused.value.args[0] == "launcher.unsupported"
    assert refused.value.exit_code == 2
    assert name in refused.value.what
    assert "--shard-base" in refused.value.fix


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"ACCELERATE_USE_FSDP": "false"},
        {"ACCELERATE_USE_FSDP": "", "ACCELERATE_USE_PARALLELISM_CONFIG": "maybe"},
        {"FSDP_OFFLOAD_PARAMS": "true"},
        SIZES | {"PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2", "PARALLELISM_CONFIG_TP_SIZE": "1"},
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
    ],
)
def test_plain_data_parallelism_starts_without_a_warning(
    launch: Callable[..., None], reporter: Recorder, variables: dict[str, str]
) -> None:
    launch(PLAIN | variables)
    assert not reporter.messages + reporter.warned


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_precision_other_than_the_devices_own_is_reported(
    launch: Callable[..., None], reporter: Recorder, precision: str
) -> None:
    launch(PLAIN | {"ACCELERATE_MIXED_PRECISION": precision})
    (warning,) = reporter.warned
    assert f"mixed_precision {precision}" in warning
    assert "bfloat16" in warning


def test_one_process_ignores_accelerates_config(launch: Callable[..., None], reporter: Recorder) -> None:
    for variables, _ in UNSUPPORTED:
        launch(variables, SINGLE)
    assert not reporter.messages + reporter.warned
