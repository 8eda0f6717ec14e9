"""Tests of the messages while a training is set up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.errors import EnvironmentFault
from aegis.model.base import find_base
from aegis.training import build_state as building
from aegis.training.build_state import build_state
from tests.conftest import MakeRandom
from tests.training.conftest import CPU


@pytest.mark.parametrize("asked", ["on", "auto"])
def test_cuda_graphs_that_are_set_on_but_impossible_are_reported(
    make_random: MakeRandom, reporter: Any, asked: Any
) -> None:
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu", cuda_graphs=asked)
    with build_state(config, find_base(config.base_model), CPU, None):
        pass
    assert any("CUDA graphs" in text for text in reporter.warned) == (asked == "on")


def test_processes_share_the_cores_while_each_quantizes_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun gives each one thread, which is restored afterwards; a larger number is kept."""
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        for given, used in ((1, 3), (4, 4)):
            torch.set_num_threads(given)
            with building._share_of_cores():
                assert torch.get_num_threads() == used
            assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("cap", [3.0, None])
def test_a_cap_without_a_gpu_is_reported(make_random: MakeRandom, reporter: Any, cap: float | None) -> None:
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu", gpu_memory_gib=cap)
    with build_state(config, find_base(config.base_model), CPU, None):
        pass
    assert sum("--gpu-memory-gib has no effect" in text for text in reporter.warned) == (cap is not None)


def test_the_cap_holds_before_the_base_is_loaded(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch) -> None:
    """And until the training ends. Without a GPU, only the order can be checked."""
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu", gpu_memory_gib=2.5)
    events: list[object] = []
    load = building.load_base

    @contextmanager
    def capped(*given: object) -> Iterator[None]:
        events.append(given)
        yield
        events.append("lifted")

    def loading(*given: Any, **more: Any) -> Any:
        events.append("load")
        return load(*given, **more)

    monkeypatch.setattr(building.allocator, "capped", capped)
    monkeypatch.setattr(building, "load_base", loading)
    with build_state(config, find_base(config.base_model), CPU, None):
        events.append("train")
    assert events == [(CPU, 2.5), "load", "train", "lifted"]


def raiser(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("cap", [2.5, None])
@pytest.mark.parametrize("loading", [False, True])
def test_the_error_of_a_full_gpu_names_the_cap(
    make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, cap: float | None, loading: bool
) -> None:
    """In a step, and if the base itself does not fit; the cap is a stand-in's."""
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu")
    monkeypatch.setattr(building.allocator, "capped", lambda *_: nullcontext(cap))
    base = find_base(config.base_model)
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
    if loading:
        monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", raiser(full))
    with pytest.raises(EnvironmentFault) as caught, build_state(config, base, CPU, None):
        raise full
    assert ("raise --gpu-memory-gib (now 2.5)" in caught.value.fix) == (cap is not None)
    assert ("--load-in 4bit" in caught.value.fix) == loading
    assert ("--max-length (now 512)" in caught.value.fix) != loading


def test_another_error_keeps_its_own_fix(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu")
    monkeypatch.setattr(building.allocator, "capped", lambda *_: nullcontext(2.5))
    fault = EnvironmentFault("distributed.world_size", text="x")
    advice = fault.fix
    with pytest.raises(EnvironmentFault), build_state(config, find_base(config.base_model), CPU, None):
        raise fault
    assert fault.fix == advice
