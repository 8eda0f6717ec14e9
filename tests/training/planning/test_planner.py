"""Which neighbours a plan compares, and what "auto" comes to on a GPU of some size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from aegis.config.settings import TrainConfig
from aegis.training.execution.options import PLAIN, ExecutionOptions, offloaded_bytes
from aegis.training.execution.pinned import can_pin
from aegis.training.planning import planner
from aegis.training.planning.estimate import MemoryEstimator
from aegis.training.planning.planner import MemoryPlan, MemoryPlanner, fit_to_memory
from tests.conftest import MakeRandom
from tests.training.conftest import phi35_config

GIB = 2**30


def test_a_gpus_memory_decides_what_is_recomputed(make_random: MakeRandom) -> None:
    """ "auto" recomputes as many layers as it takes, and no more; the other settings are what they say.

    Layers that are compiled are parked before: below.
    """
    folder = make_random("phi3", num_hidden_layers=8)

    def own(setting: Any, free_bytes: int) -> MemoryPlan:
        config = TrainConfig(base_model=str(folder), activation_checkpointing=setting, max_length=512, compile="off")
        return next(MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", free_bytes).neighbours())

    plenty = 10**12
    for setting, free, checkpointed_layers in (("auto", plenty, 0), ("auto", 1, 8), ("on", plenty, 8), ("off", 1, 0)):
        assert own(setting, free).checkpointed_layers == checkpointed_layers, setting
    assert own("offload", plenty).offload_checkpoints
    assert own("auto", 1).offload_checkpoints
    kept, least = own("auto", plenty).memory.peak, own("on", plenty).memory.peak
    between = own("auto", int((kept + least) / 2) + 2**29)
    assert between.checkpointed_layers in (4, 5)
    assert least < between.memory.peak <= (kept + least) / 2


def test_what_is_offloaded_takes_the_hosts_memory(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input a layer, and of compiled layers attention's result too where the host has room: as much here.

    Pieces are powers of two.
    """
    folder = make_random("phi3", num_hidden_layers=8)

    def taken(length: int = 512, available: int = 2**40, **settings: Any) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        config = TrainConfig(base_model=str(folder), max_length=length, **settings)
        estimator = MemoryEstimator(folder, config)
        return next(MemoryPlanner(estimator, config, "cuda", 10**12).neighbours()).host_bytes - estimator.hosted_bytes

    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    piece = 512 * text["hidden_size"] * 2
    assert piece.bit_count() == 1
    offload: dict[str, Any] = {"activation_checkpointing": "offload"}
    assert taken(**offload, compile="off") == 8 * piece
    assert taken(**offload, compile="on") == 16 * piece
    assert taken(**offload, compile="on", available=20 * piece) == 8 * piece
    assert taken(600, **offload, compile="off") == 16 * piece
    assert taken(activation_checkpointing="on") == 0


def test_a_base_that_is_split_is_shown_in_several_processes(make_random: MakeRandom) -> None:
    """All layers recomputed and none compiled, as it is trained; what each process holds falls with their number."""
    folder = make_random("phi3", num_hidden_layers=8)

    def split_ways(**settings: Any) -> MemoryPlanner:
        config = TrainConfig(base_model=str(folder), max_length=512, **settings)
        return MemoryPlanner(MemoryEstimator(folder, config), config, "cuda", 10**12)

    split, whole = split_ways(shard_base=True), next(split_ways(activation_checkpointing="on", compile="off").all())
    variants = list(split.all())
    assert not split.compiled
    assert [(way.processes, way.checkpointed_layers, way.asked_for) for way in variants] == [
        (n, 8, True) for n in (2, 3, 4, 8)
    ]
    for way in variants:
        assert way.held is not None
        assert way.memory.weights == way.held.part + way.held.layers + way.held.whole
        # nothing else is shared between them
        assert way.memory.peak - way.memory.weights == whole.memory.peak - whole.memory.weights
    parts = [way.held.part for way in variants if way.held is not None]
    assert parts == sorted(parts, reverse=True)
    assert whole.memory.weights - variants[0].memory.weights == parts[0] - variants[0].held.layers
    lighter = next(split_ways(shard_base=True, activation_checkpointing="offload").all())
    assert lighter.memory.peak < variants[0].memory.peak
    assert lighter.host_bytes > variants[0].host_bytes > 0


@pytest.fixture(scope="module")
def phi35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config of Phi-3.5-mini's shape."""
    folder = tmp_path_factory.mktemp("phi35")
    phi35_config().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["Phi3ForCausalLM"]}), encoding="utf-8")
    return folder


@pytest.fixture
def trained(phi35: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExecutionOptions]:
    """What training chooses on a GPU that is not here, with so much of its memory free, and of its host's."""

    def choose(gib: float, host_gib: float = 24, pins: bool = True, **settings: Any) -> ExecutionOptions:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
        monkeypatch.setattr(planner, "can_pin", lambda sizes: pins and sum(sizes) < host_gib * GIB)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=int(host_gib * GIB)))
        config = TrainConfig(base_model=str(phi35), **settings)
        given = ExecutionOptions(varlen_attention=True, compiled=settings.get("compile") == "on")
        return fit_to_memory(given, config, phi35, 32, torch.device("cuda"), int(gib * GIB))

    return choose


def test_training_keeps_parks_recomputes_and_offloads_as_the_memory_asks_for(
    trained: Callable[..., ExecutionOptions],
) -> None:
    """Of a 12 GB card: all of 2,048 tokens fit, 4,096 in part, more less, and at last the host keeps the inputs."""
    found = [trained(11.5, compile="on", max_length=length) for length in (2048, 4096, 8192, 60_000)]
    assert found[0] == trained(80, compile="on", max_length=2048)
    assert trained(80, compile="on", max_length=4096).offloaded_layers < found[1].offloaded_layers < 8
    assert (found[0].checkpointed_layers, found[1].checkpointed_layers) == (0, 0)
    assert 0 < found[2].checkpointed_layers <= 32
    assert [way.offloaded_layers > 0 for way in found] == [True, True, False, False]
    assert [way.offload_checkpoints for way in found] == [False, False, False, True]
    assert all(way.varlen_attention and way.compiled for way in found)
    less = trained(3.2, compile="on", max_length=512)
    assert 0 < less.checkpointed_layers < 32
    assert not less.offload_checkpoints
    assert trained(2.8, compile="on", max_length=512).keep_attention


def test_as_few_layers_are_parked_as_it_takes(trained: Callable[..., ExecutionOptions]) -> None:
    """At most a third of them, and only compiled ones: what is not compiled keeps more than a link carries."""
    found = [trained(gib, compile="on", max_length=4096) for gib in (80, 11.5, 11, 10.5, 9.8, 9)]
    offloaded_layers = [way.offloaded_layers for way in found]
    assert offloaded_layers == [2, *sorted(set(offloaded_layers[1:-1])), 0]
    assert max(offloaded_layers) == 10 == 32 // 3
    assert [way.checkpointed_layers > 0 for way in found] == [False] * 5 + [True]
    plain = trained(11, compile="off", max_length=4096)
    assert plain.offloaded_layers == 0
    assert plain.checkpointed_layers > 0


def test_some_layers_of_short_windows_are_parked_in_any_case(trained: Callable[..., ExecutionOptions]) -> None:
    """Of 512 tokens twelve, which need less than half a GiB of the host; of longer windows what 640 MiB there hold."""
    found = {length: trained(80, compile="on", max_length=length) for length in (256, 512, 1024, 2048, 4096, 16_384)}
    assert {length: way.offloaded_layers for length, way in found.items()} == {
        256: 12, 512: 12, 1024: 8, 2048: 4, 4096: 2, 16_384: 0
    }  # fmt: skip
    assert not any(way.checkpointed_layers for way in found.values())
    assert trained(80, 1, compile="on", max_length=512).offloaded_layers == 6  # a quarter of the host's free memory
    assert trained(80, compile="off", max_length=512).offloaded_layers == 0
    assert trained(80, compile="on", max_length=512, activation_checkpointing="off").offloaded_layers == 0


def test_the_host_must_have_room_for_what_is_parked(
    trained: Callable[..., ExecutionOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of what is free there: ten layers of 4,096 tokens take 3 GiB. A host without room has none parked.

    Processes of one machine share it.
    """
    wanted = trained(9.8, 24, compile="on", max_length=4096)
    needed = wanted.offloaded_layers * offloaded_bytes(phi35_config(), 4096, 2) / GIB
    assert wanted.offloaded_layers == 10
    assert trained(9.8, 4.01 * needed, compile="on", max_length=4096) == wanted
    less = trained(9.8, 3.99 * needed, compile="on", max_length=4096)
    assert (less.offloaded_layers, less.checkpointed_layers > 0) == (0, True)
    for processes, offloaded_layers in ((2, 0), (1, 10)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert trained(9.8, 4.01 * needed, compile="on", max_length=4096).offloaded_layers == offloaded_layers


def test_a_host_that_cannot_pin_has_none_parked(trained: Callable[..., ExecutionOptions], reporter: Any) -> None:
    """It is said, and the layers are kept where there is room, or recomputed."""
    settings: dict[str, Any] = {"compile": "on", "max_length": 512}
    assert trained(80, **settings).offloaded_layers == 12
    assert not reporter.warned
    assert trained(80, pins=False, **settings) == trained(80, **settings, activation_checkpointing="off")
    (warning,) = reporter.warned
    assert "12 layers" in warning
    short = trained(3.5, pins=False, **settings)
    assert (short.offloaded_layers, short.checkpointed_layers > 0) == (0, True)


@pytest.mark.parametrize("error", ["CUDA error: out of memory", "CUDA error: an illegal memory access"])
def test_pinning_is_tried_with_all_pieces(monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    """This machine has nothing to pin for: torch's door is a stand-in. An error that is none of memory is raised."""
    asked: list[int] = []
    room = 3

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> None:
        assert (dtype, pin_memory) == (torch.uint8, True)
        asked.append(size)
        if len(asked) > room:
            raise RuntimeError(error)

    monkeypatch.setattr(torch, "empty", empty)
    assert can_pin([8, 16, 8])
    assert asked == [8, 16, 8]
    room = 4
    if "illegal" in error:
        with pytest.raises(RuntimeError, match="illegal"):
            can_pin([8, 16])
    else:
        assert not can_pin([8, 16])


def test_what_is_parked_takes_the_hosts_memory(phi35: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the embeddings; a plan tells it. What is asked for otherwise is not parked."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=24 * GIB))

    def own(setting: Any) -> MemoryPlan:
        config = TrainConfig(base_model=str(phi35), activation_checkpointing=setting, compile="on")
        return MemoryPlanner(MemoryEstimator(phi35, config), config, "cuda", 80 * GIB).chosen(512)

    kept, offloaded_layers = own("off"), own("auto")
    embeddings = 32_064 * 3072 * 2
    assert (kept.offloaded_layers, kept.host_bytes) == (0, embeddings)
    assert offloaded_layers.host_bytes == embeddings + offloaded_layers.offloaded_layers * offloaded_bytes(
        phi35_config(), 512, 2
    )
    assert offloaded_layers.memory.peak < 3 * GIB < kept.memory.peak
    assert [own(setting).offloaded_layers for setting in ("on", "off", "offload")] == [0, 0, 0]


def test_what_is_asked_for_is_done(trained: Callable[..., ExecutionOptions]) -> None:
    assert trained(1, activation_checkpointing="off", max_length=8192).checkpointed_layers == 0
    assert trained(80, activation_checkpointing="on").checkpointed_layers == 32
    assert trained(80, activation_checkpointing="offload").offload_checkpoints
    split = trained(80, shard_base=True)
    assert (split.checkpointed_layers, split.offload_checkpoints) == (32, False)


def test_attention_is_spared_where_both_memories_have_room(trained: Callable[..., ExecutionOptions]) -> None:
    """32 layers of 4,096 tokens take 2 GiB of the host's memory; nothing is spared of what is not compiled."""
    offload: dict[str, Any] = {"activation_checkpointing": "offload", "compile": "on"}
    assert trained(11.5, 4.1, **offload, max_length=4096).keep_attention
    assert not trained(11.5, 3.9, **offload, max_length=4096).keep_attention
    assert not trained(11.5, 4.1, **offload | {"compile": "off"}, max_length=4096).keep_attention
    assert not trained(11.5, 4.1, **offload | {"activation_checkpointing": "on"}, max_length=4096).keep_attention
    assert trained(11.5, 200, **offload, max_length=30_000).keep_attention
    assert not trained(11.5, 200, **offload, max_length=60_000).keep_attention


def test_a_cpu_does_what_is_asked_for(phi35: Path) -> None:
    """A single process asks nobody for memory; "auto" keeps, and there is nowhere to offload to."""

    def chosen(setting: Any) -> ExecutionOptions:
        config = TrainConfig(base_model=str(phi35), activation_checkpointing=setting)
        return fit_to_memory(PLAIN, config, phi35, 32, torch.device("cpu"), None)

    assert chosen("auto") == chosen("off") == PLAIN
    assert chosen("on") == chosen("offload") == ExecutionOptions(checkpointed_layers=32)
