"""Tests of the plans that are compared, and of the choice of "auto" for a GPU and a host."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aegis.config.train_settings import TrainConfig
from aegis.training.execution.activation_bytes import offloaded_layer_bytes
from aegis.training.execution.options import PLAIN, ExecutionOptions
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.finish_room import has_room
from aegis.training.planning.machine import Gpu, Host
from aegis.training.planning.offload_or_checkpoint import MemoryPlan, MemoryPlanner
from aegis.training.planning.options_that_fit import fit_to_memory
from tests.conftest import MakeRandom
from tests.training.conftest import phi35_config

GIB = 2**30
HOST = Host(24 * GIB, can_pin=lambda _: True)


def test_auto_checkpoints_as_many_layers_as_memory_requires(make_random: MakeRandom) -> None:
    """No more than it takes; the other settings do what they say. Compiled layers are offloaded first: see below."""
    folder = make_random("phi3", num_hidden_layers=8)

    def chosen(setting: Any, free_bytes: int) -> MemoryPlan:
        config = TrainConfig(base_model=str(folder), activation_checkpointing=setting, max_length=512, compile="off")
        return MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", free_bytes, host=HOST).chosen(512)

    plenty = 10**12
    for setting, free, checkpointed_layers in (("auto", plenty, 0), ("auto", 1, 8), ("on", plenty, 8), ("off", 1, 0)):
        assert chosen(setting, free).checkpointed_layers == checkpointed_layers, setting
    assert chosen("offload", plenty).offload_checkpoints
    assert chosen("auto", 1).offload_checkpoints
    none, every = chosen("auto", plenty).memory.peak, chosen("on", plenty).memory.peak
    between = chosen("auto", int((none + every) / 2) + 2**29)
    assert between.checkpointed_layers in (4, 5)
    assert every < between.memory.peak <= (none + every) / 2


def test_a_plan_compares_half_and_twice_the_length_and_the_opposite_checkpointing(make_random: MakeRandom) -> None:
    """Only the first plan is the config's own."""
    folder = make_random("phi3", num_hidden_layers=8)
    config = TrainConfig(base_model=str(folder), max_length=512, compile="off")
    plans = list(MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", 10**12, host=HOST).neighbours())
    assert [(plan.max_length, plan.checkpointed_layers) for plan in plans] == [(512, 0), (256, 0), (1024, 0), (512, 8)]
    assert [plan.asked_for for plan in plans] == [True, False, False, False]


def test_offloaded_checkpoints_are_counted_in_host_memory(make_random: MakeRandom) -> None:
    """One input per layer, and attention's result of compiled layers if the host has memory: as much again here.

    Every tensor takes a power of two.
    """
    folder = make_random("phi3", num_hidden_layers=8)

    def counted(length: int = 512, free_bytes: int = 2**40, **settings: Any) -> int:
        config = TrainConfig(base_model=str(folder), max_length=length, **settings)
        estimator = MemoryEstimator(folder, config)
        planner = MemoryPlanner(estimator, config, "cuda", 10**12, host=Host(free_bytes))
        return planner.chosen(length).host_bytes - estimator.hosted_bytes

    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tensor = 512 * text["hidden_size"] * 2
    assert tensor.bit_count() == 1
    offload: dict[str, Any] = {"activation_checkpointing": "offload"}
    assert counted(**offload, compile="off") == 8 * tensor
    assert counted(**offload, compile="on") == 16 * tensor
    assert counted(**offload, compile="on", free_bytes=20 * tensor) == 8 * tensor
    assert counted(600, **offload, compile="off") == 16 * tensor
    assert counted(activation_checkpointing="on") == 0


def test_a_sharded_base_is_planned_for_several_numbers_of_processes(make_random: MakeRandom) -> None:
    """Layers are compiled and offloaded as those of a complete base; each of more processes holds less."""
    folder = make_random("phi3", num_hidden_layers=8)

    def plans(**settings: Any) -> list[MemoryPlan]:
        config = TrainConfig(base_model=str(folder), max_length=512, **settings)
        return list(MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", 10**12, host=HOST).neighbours())

    complete, sharded = plans()[0], plans(shard_base=True)
    assert [(plan.processes, plan.asked_for) for plan in sharded] == [(n, True) for n in (2, 3, 4, 8)]
    for plan in sharded:
        assert plan.sharded is not None
        assert plan.memory.weights == sum(vars(plan.sharded).values())
        # nothing else is shared between them
        assert plan.memory.peak - plan.memory.weights == complete.memory.peak - complete.memory.weights
        assert plan.host_bytes == complete.host_bytes > 0
    held = [plan.sharded for plan in sharded if plan.sharded is not None]
    shards = [weights.shard for weights in held]
    assert shards == sorted(shards, reverse=True)
    assert complete.memory.weights - sharded[0].memory.weights == shards[0] - held[0].gathered_layers
    assert plans(shard_base=True, activation_checkpointing="on")[0].checkpointed_layers == 8


def test_offloaded_shards_are_planned_in_host_memory(make_random: MakeRandom) -> None:
    folder = make_random("phi3", num_hidden_layers=8)

    def plans(offload: bool) -> list[MemoryPlan]:
        config = TrainConfig(base_model=str(folder), max_length=512, shard_base=True, shard_offload=offload)
        return list(MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", 10**12, host=HOST).neighbours())

    for kept, offloaded in zip(plans(False), plans(True), strict=True):
        assert kept.sharded is not None
        assert offloaded.sharded is not None
        assert offloaded.host_bytes - kept.host_bytes == kept.sharded.shard
        # two of eight equal layers
        assert offloaded.sharded.shard == kept.sharded.shard / 4
        assert kept.memory.peak - offloaded.memory.peak == kept.sharded.shard - offloaded.sharded.shard


@pytest.fixture(scope="module")
def phi35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the config of Phi-3.5-mini's shape."""
    folder = tmp_path_factory.mktemp("phi35")
    phi35_config().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Phi3ForCausalLM"]}), encoding="utf-8")
    return folder


@pytest.fixture
def trained(phi35: Path) -> Callable[..., ExecutionOptions]:
    """Return training's choice on a GPU and a host with this free memory."""

    def choose(gib: float, host_gib: float = 24, pins: bool = True, **settings: Any) -> ExecutionOptions:
        host = Host(int(host_gib * GIB), can_pin=lambda sizes: pins and sum(sizes) < host_gib * GIB)
        config = TrainConfig(base_model=str(phi35), **settings)
        given = ExecutionOptions(varlen_attention=True, compiled=settings.get("compile") == "on")
        return fit_to_memory(given, config, phi35, 32, Gpu((8, 6), int(gib * GIB)), host)

    return choose


def test_training_offloads_then_checkpoints_then_offloads_checkpoints(
    trained: Callable[..., ExecutionOptions],
) -> None:
    """A 12 GB card: 2,048 tokens fit, 4,096 need more offloading, 8,192 checkpointing, 60,000 host memory as well."""
    found = [trained(11.5, compile="on", max_length=length) for length in (2048, 4096, 8192, 60_000)]
    assert found[0] == trained(80, compile="on", max_length=2048)
    assert trained(80, compile="on", max_length=4096).offloaded_layers < found[1].offloaded_layers < 8
    assert (found[0].checkpointed_layers, found[1].checkpointed_layers) == (0, 0)
    assert 0 < found[2].checkpointed_layers <= 32
    assert [options.offloaded_layers > 0 for options in found] == [True, True, False, False]
    assert [options.offload_checkpoints for options in found] == [False, False, False, True]
    assert all(options.varlen_attention and options.compiled for options in found)
    small = trained(3.2, compile="on", max_length=512)
    assert 0 < small.checkpointed_layers < 32
    assert not small.offload_checkpoints
    assert trained(2.8, compile="on", max_length=512, keep_weight=0.0).keep_attention


def test_as_few_layers_are_offloaded_as_memory_requires(trained: Callable[..., ExecutionOptions]) -> None:
    """At most a third of them, and only compiled ones: the others keep more than a link carries."""
    found = [trained(gib, compile="on", max_length=4096) for gib in (80, 11.5, 11, 10.5, 9.8, 9)]
    offloaded = [options.offloaded_layers for options in found]
    assert offloaded == [2, *sorted(set(offloaded[1:-1])), 0]
    assert max(offloaded) == 10 == 32 // 3
    assert [options.checkpointed_layers > 0 for options in found] == [False] * 5 + [True]
    plain = trained(11, compile="off", max_length=4096)
    assert plain.offloaded_layers == 0
    assert plain.checkpointed_layers > 0


def test_some_layers_of_short_windows_are_always_offloaded(trained: Callable[..., ExecutionOptions]) -> None:
    """Twelve at 512 tokens, which take less than half a GiB of host memory; longer windows use at most 640 MiB."""
    found = {length: trained(80, compile="on", max_length=length) for length in (256, 512, 1024, 2048, 4096, 16_384)}
    assert {length: options.offloaded_layers for length, options in found.items()} == {
        256: 12, 512: 12, 1024: 8, 2048: 4, 4096: 2, 16_384: 0
    }  # fmt: skip
    assert not any(options.checkpointed_layers for options in found.values())
    assert trained(80, 1, compile="on", max_length=512).offloaded_layers == 6  # a quarter of the host's free memory
    assert trained(80, compile="off", max_length=512).offloaded_layers == 0
    assert trained(80, compile="on", max_length=512, activation_checkpointing="off").offloaded_layers == 0


def test_offloaded_layers_take_a_quarter_of_the_free_host_memory(trained: Callable[..., ExecutionOptions]) -> None:
    """Ten layers of 4,096 tokens take 3 GiB; a host with less checkpoints them instead."""
    wanted = trained(9.8, 24, compile="on", max_length=4096)
    needed = wanted.offloaded_layers * offloaded_layer_bytes(phi35_config(), 4096, 2) / GIB
    assert wanted.offloaded_layers == 10
    assert trained(9.8, 4.01 * needed, compile="on", max_length=4096) == wanted
    less = trained(9.8, 3.99 * needed, compile="on", max_length=4096)
    assert (less.offloaded_layers, less.checkpointed_layers > 0) == (0, True)


def test_processes_of_one_machine_share_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = Host.measure().free_bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert Host.measure().free_bytes == pytest.approx(alone / 4, rel=0.2)


def test_a_host_that_cannot_pin_offloads_no_layer(trained: Callable[..., ExecutionOptions], reporter: Any) -> None:
    """A warning reports it; the layers stay on the GPU if they fit, or are checkpointed."""
    settings: dict[str, Any] = {"compile": "on", "max_length": 512}
    assert trained(80, **settings).offloaded_layers == 12
    assert not reporter.warned
    assert trained(80, pins=False, **settings) == trained(80, **settings, activation_checkpointing="off")
    (warning,) = reporter.warned
    assert "12 layers" in warning
    short = trained(3.5, pins=False, **settings)
    assert (short.offloaded_layers, short.checkpointed_layers > 0) == (0, True)


def test_offloaded_layers_are_counted_in_host_memory(phi35: Path) -> None:
    """Beside the embeddings; only "auto" offloads layers."""

    def chosen(setting: Any) -> MemoryPlan:
        config = TrainConfig(base_model=str(phi35), activation_checkpointing=setting, compile="on")
        return MemoryPlanner(MemoryEstimator(phi35, config), config, "cuda", 80 * GIB, host=HOST).chosen(512)

    kept, offloaded = chosen("off"), chosen("auto")
    embeddings = 32_064 * 3072 * 2
    assert (kept.offloaded_layers, kept.host_bytes) == (0, embeddings)
    layer = offloaded_layer_bytes(phi35_config(), 512, 2)
    assert offloaded.host_bytes == embeddings + offloaded.offloaded_layers * layer
    assert offloaded.memory.peak < 3 * GIB < kept.memory.peak
    assert [chosen(setting).offloaded_layers for setting in ("on", "off", "offload")] == [0, 0, 0]


def test_explicit_settings_are_followed_whatever_the_memory(trained: Callable[..., ExecutionOptions]) -> None:
    assert trained(1, activation_checkpointing="off", max_length=8192).checkpointed_layers == 0
    assert trained(80, activation_checkpointing="on").checkpointed_layers == 32
    assert trained(80, activation_checkpointing="offload").offload_checkpoints


def test_attention_is_kept_if_both_memories_have_room(trained: Callable[..., ExecutionOptions]) -> None:
    """32 layers of 4,096 tokens take 2 GiB of host memory; layers that are not compiled recompute attention."""
    offload: dict[str, Any] = {"activation_checkpointing": "offload", "compile": "on"}
    assert trained(11.5, 4.1, **offload, max_length=4096).keep_attention
    assert not trained(11.5, 3.9, **offload, max_length=4096).keep_attention
    assert not trained(11.5, 4.1, **offload | {"compile": "off"}, max_length=4096).keep_attention
    assert not trained(11.5, 4.1, **offload | {"activation_checkpointing": "on"}, max_length=4096).keep_attention
    assert trained(11.5, 200, **offload, max_length=30_000).keep_attention
    assert not trained(11.5, 200, **offload, max_length=60_000).keep_attention


def test_a_cpu_follows_the_setting_without_offloading(phi35: Path) -> None:
    """ "auto" keeps all activations, because there is no other memory."""

    def chosen(setting: Any) -> ExecutionOptions:
        config = TrainConfig(base_model=str(phi35), activation_checkpointing=setting)
        return fit_to_memory(PLAIN, config, phi35, 32, None, HOST)

    assert chosen("auto") == chosen("off") == PLAIN
    assert chosen("on") == chosen("offload") == ExecutionOptions(checkpointed_layers=32)


def test_a_finish_by_itself_must_leave_the_activations_as_they_are(phi35: Path) -> None:
    """The weights of a Q4_K_M file take 4 GiB more than those in NF4: at 7 GiB there is room for one of the two."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(phi35))
    types = {name: "Q4_K" for name, weight in model.named_parameters() if weight.ndim == 2}
    config = TrainConfig(base_model=str(phi35), compile="off")
    alone = MemoryPlanner(MemoryEstimator(phi35, config, "cuda", (8, 6)), config, "cuda", 7 * GIB, host=HOST)
    assert alone.chosen(config.max_length).checkpointed_layers == 0
    assert [has_room(config, phi35, (8, 6), room, types) for room in (7 * GIB, 16 * GIB, None)] == [False, True, True]
