"""The estimate against exact counts, and against peaks that were measured on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config import TrainConfig
from aegis.model.load import footprint, load_base
from aegis.soul.module import Soul
from aegis.training.assembly import assembled
from aegis.training.estimate import Blueprint
from aegis.training.memory import by_part
from tests.conftest import MakeRandom
from tests.training.conftest import CPU

GIB = 1 << 30
HOPPER = (9, 0)

# max_memory_allocated of ten steps, batch 1, packed windows, Phi-3.5-mini's shape, NVIDIA H200, torch 2.11, 2026-11-24:
# python tools/rehearse_gpu.py --template FOLDER
MEASURED_GIB = (
    (512, True, "so8", 2.55),
    (2048, True, "so8", 3.07),
    (4096, True, "so8", 3.83),
    (512, False, "so8", 4.61),
    (2048, False, "so8", 11.4),
    (512, True, "dense", 2.83),
)


@pytest.fixture(scope="module")
def phi35(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the config of a Phi-3.5-mini and nothing else."""
    from transformers import Phi3Config

    folder = tmp_path_factory.mktemp("phi35")
    Phi3Config(architectures=["Phi3ForCausalLM"]).save_pretrained(folder)
    return folder


def test_within_a_tenth_of_what_a_gpu_took(phi35: Path) -> None:
    """At 512, 2,048 and 4,096 tokens, with and without recomputation, block and dense soul."""
    for rotation in ("so8", "dense"):
        blueprint = Blueprint(phi35, TrainConfig(rotation=rotation), capability=HOPPER)
        assert blueprint.parameters == 3_821_079_552
        assert blueprint.trained["adapter"] == 9_437_184
        for length, recompute, kind, measured in MEASURED_GIB:
            if kind == rotation:
                found = blueprint.estimate(length, recompute=recompute).peak / GIB
                assert abs(found / measured - 1) < 0.1, (length, recompute, kind, found, measured)


def test_one_that_forgets_the_recomputation_would_miss(phi35: Path) -> None:
    """The control: the bound above can be missed."""
    blueprint = Blueprint(phi35, TrainConfig(), capability=HOPPER)
    assert blueprint.estimate(512, recompute=False).peak / GIB > 1.5 * 2.55


@pytest.mark.parametrize("family", ["phi3", "llama", "mistral"])
@pytest.mark.parametrize("load_in", ["4bit", "16bit"])
def test_weights_and_trained_parts_are_exact(make_random: MakeRandom, reporter: Any, family: str, load_in: Any) -> None:
    """Byte for byte what a real NF4 model, a real adapter and a real soul take, as they are trained."""
    folder = make_random(family, tie_word_embeddings=family == "llama")
    config = TrainConfig(base_model=str(folder), load_in=load_in, lora_r=4, device="cpu")
    blueprint = Blueprint(folder, config, "cpu")
    found = blueprint.estimate(32, recompute=False)
    assert found.weights == footprint(load_base(folder, load_in, CPU))

    from aegis.model.base import find_base

    with assembled(config, find_base(str(folder)), CPU, None) as trainee:
        parts = by_part(trainee, CPU)
    assert found.weights == parts.base
    assert found.adapter == parts.adapter == 4 * blueprint.trained["adapter"]
    # alpha, which the schedule moves, is held and not trained
    assert (found.soul, found.gradients, found.optimizer) == (parts.soul, parts.gradients, 2 * parts.gradients)
    assert found.workspace == 0
    assert found.peak == sum(vars(found).values())


def test_what_costs_more_is_estimated_higher(make_random: MakeRandom) -> None:
    folder = make_random("phi3")

    def peak(length: int = 256, recompute: bool = True, **settings: Any) -> int:
        blueprint = Blueprint(folder, TrainConfig(base_model=str(folder), **settings))
        return blueprint.estimate(length, recompute=recompute).peak

    usual = peak()
    assert peak(512) > usual
    assert peak(recompute=False) > usual
    assert peak(batch_size=4) > usual
    assert peak(lora_r=256) > usual
    assert peak(load_in="16bit") > usual
    assert peak(gradient_accumulation_steps=3) >= usual
    assert peak(rotation="dense") > usual
    assert peak(alpha="learned") >= usual


def test_it_takes_nothing_and_leaves_nothing(make_random: MakeRandom) -> None:
    """The same twice, whatever was asked in between; everything stays on the meta device."""
    folder = make_random("llama")
    blueprint = Blueprint(folder, TrainConfig(base_model=str(folder)))
    first = blueprint.estimate(64, recompute=True)
    blueprint.estimate(128, recompute=False)
    assert blueprint.estimate(64, recompute=True) == first
    assert {tensor.device.type for tensor in [*blueprint.model.parameters(), *blueprint.soul.parameters()]} == {"meta"}
    assert all(parameter.grad is None for parameter in blueprint.model.parameters())
    assert torch.is_grad_enabled()
    assert Soul(64)(torch.zeros(1, 64)).shape == (1, 64)
