"""Tests of memory by part: each part is counted once, and their sum is the allocated memory."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.model.load import footprint
from aegis.training.execution import allocator
from aegis.training.memory import by_part
from aegis.training.step import Stepper
from tests.training.conftest import CPU, MakeState, noise

CONFIG = TrainConfig(lora_r=2)
CUDA, GIB = torch.device("cuda", 0), 2**30


def test_the_parts_of_the_memory_are_the_bytes_of_their_tensors(make_state: MakeState) -> None:
    state = make_state(CONFIG)
    lora = sum(p.numel() for name, p in state.model.named_parameters() if "lora_" in name)
    others = sum(p.numel() for name, p in state.model.named_parameters() if "lora_" not in name)
    others += sum(buffer.numel() for buffer in state.model.buffers())
    skew, start = state.soul.skew.numel(), state.soul.start.numel()
    before = by_part(state, CPU)
    assert before.adapter == 4 * lora
    assert before.base == 4 * others == footprint(state.model) - 4 * lora
    assert before.soul == 4 * (skew + start + 1)
    assert before.gradients == 4 * (lora + skew)
    assert before.optimizer == 0
    Stepper(state, CONFIG).take(0, [noise(0)])
    after = by_part(state, CPU)
    tensors = len(state.optimizer.state)
    assert after.optimizer == 2 * 4 * (lora + skew) + 4 * tensors  # two moments each, and a step count
    assert after.peak >= after.base + after.adapter + after.soul + after.gradients + after.optimizer
    assert after.activations == after.peak - sum(
        (after.base, after.adapter, after.soul, after.gradients, after.optimizer)
    )
    assert torch.is_grad_enabled()


def test_tensors_in_host_memory_do_not_count_as_gpu_memory(make_state: MakeState) -> None:
    """For a stand-in GPU: the meta device stands for its memory."""
    model = make_state(CONFIG).model
    whole, embeddings = footprint(model), model.get_base_model().get_input_embeddings()
    embeddings.to("meta")
    assert footprint(model, CPU) == whole - embeddings.weight.nbytes
    assert footprint(model, torch.device("meta")) == embeddings.weight.nbytes


@pytest.mark.parametrize(
    ("device", "output", "asked"), [("cuda", {}, 1), ("cpu", {}, 0), ("cuda", {"PYTORCH_ALLOC_CONF": ""}, 0)]
)
def test_segments_of_gpu_memory_grow_unless_the_user_has_set_the_allocator(
    device: str, output: dict[str, str], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", calls.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in output.items():
        monkeypatch.setenv(name, value)
    allocator.let_segments_grow(torch.device(device))
    assert calls == ["expandable_segments:True"] * asked


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stand in for the allocator of a 12 GiB card; return the fractions that were set."""
    held = [1.0]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=12 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _: held[-1])
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda fraction, _: held.append(fraction))
    return held


def test_a_cap_on_gpu_memory_holds_while_training_runs(fractions: list[float]) -> None:
    """Afterwards, and after an error too, the allocator has what it had."""
    with allocator.capped(CUDA, 3) as gib:
        assert (gib, fractions) == (3, [1.0, 0.25])
    assert fractions == [1.0, 0.25, 1.0]
    with pytest.raises(RuntimeError), allocator.capped(CUDA, 6):
        raise RuntimeError
    assert fractions == [1.0, 0.25, 1.0, 0.5, 1.0]


def test_a_lower_limit_that_exists_already_stays(fractions: list[float]) -> None:
    fractions.append(0.125)
    with allocator.capped(CUDA, 3):
        assert fractions[-1] == 0.125


@pytest.mark.parametrize(("device", "gib"), [(CUDA, None), (CUDA, 12.0), (CUDA, 80.0), (CPU, 3.0)])
def test_a_cap_above_the_cards_memory_sets_no_limit(
    fractions: list[float], device: torch.device, gib: float | None
) -> None:
    """No cap, a card that has no more, a CPU."""
    with allocator.capped(device, gib) as found:
        assert found is None
    assert fractions == [1.0]
    assert allocator.cap_bytes(gib, device) is None


def test_a_cap_has_its_bytes_without_a_gpu(fractions: list[float]) -> None:
    assert allocator.cap_bytes(2.5, None) == allocator.cap_bytes(2.5, CUDA) == 5 * GIB // 2
    assert allocator.cap_bytes(80, None) == 80 * GIB
    assert allocator.cap_bytes(None, None) is None
