"""Memory by part: each part counted once, and their sum is what was taken."""

from __future__ import annotations

import sys

import pytest
import torch

from aegis.config import TrainConfig
from aegis.model.load import footprint
from aegis.training import memory
from aegis.training.memory import by_part
from aegis.training.step import Stepper
from tests.training.conftest import CPU, MakeTrainee, noise

CONFIG = TrainConfig(lora_r=2)


def test_parts_are_what_the_tensors_take(make_trainee: MakeTrainee) -> None:
    trainee = make_trainee(CONFIG)
    lora = sum(p.numel() for name, p in trainee.model.named_parameters() if "lora_" in name)
    others = sum(p.numel() for name, p in trainee.model.named_parameters() if "lora_" not in name)
    others += sum(buffer.numel() for buffer in trainee.model.buffers())
    skew, start = trainee.soul.skew.numel(), trainee.soul.start.numel()
    before = by_part(trainee, CPU)
    assert before.adapter == 4 * lora
    assert before.base == 4 * others == footprint(trainee.model) - 4 * lora
    assert before.soul == 4 * (skew + start + 1)
    assert before.gradients == 4 * (lora + skew)
    assert before.optimizer == 0
    Stepper(trainee, CONFIG).take(0, [noise(0)])
    after = by_part(trainee, CPU)
    tensors = len(trainee.optimizer.state)
    assert after.optimizer == 2 * 4 * (lora + skew) + 4 * tensors  # two moments each, and a step count
    assert after.peak >= after.base + after.adapter + after.soul + after.gradients + after.optimizer
    assert after.activations == after.peak - sum(
        (after.base, after.adapter, after.soul, after.gradients, after.optimizer)
    )
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("device", "said", "asked"), [("cuda", {}, 1), ("cpu", {}, 0), ("cuda", {"PYTORCH_ALLOC_CONF": ""}, 0)]
)
def test_the_gpus_memory_grows_in_place_unless_the_user_says_how(
    device: str, said: dict[str, str], asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", calls.append)
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    memory.let_segments_grow(torch.device(device))
    assert calls == ["expandable_segments:True"] * asked
