"""Tests of the choice of execution options by settings, GPU and model."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.training.execution import options
from aegis.training.execution.options import PLAIN, ExecutionOptions, is_offloaded
from tests.training.conftest import MakeState, phi35_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig()


@pytest.mark.parametrize(("layers", "offloaded"), [(n, k) for n in (2, 3, 4, 8, 32) for k in range(n)])
def test_offloaded_layers_are_spread_and_the_last_ones_stay(layers: int, offloaded: int) -> None:
    """No gap is longer than another by more than one, except the last: three layers stay where that many may."""
    numbers = [number for number in range(layers) if is_offloaded(number, layers, offloaded)]
    assert len(numbers) == offloaded
    gaps = [after - before for before, after in pairwise(numbers)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    if offloaded:
        assert numbers[0] == 0
        assert layers - 1 - numbers[-1] >= min(3, layers - offloaded)


def test_a_layer_is_offloaded_or_checkpointed_and_not_both() -> None:
    assert "of 2 of 32 layers in host memory" in ExecutionOptions(compiled=True, offloaded_layers=2).explain(32)
    for conflict in ({"compiled": False}, {"compiled": True, "checkpointed_layers": 1}):
        with pytest.raises(AssertionError, match="offloaded layers"):
            ExecutionOptions(offloaded_layers=2, **conflict)


def test_a_cpu_gets_no_options(make_state: MakeState) -> None:
    base = make_state(CONFIG).model.get_base_model()
    assert ExecutionOptions.choose(CONFIG, base, CPU, torch.float32) == PLAIN
    graphs_on = CONFIG.model_copy(update={"cuda_graphs": "on"})
    assert ExecutionOptions.choose(graphs_on, base, CPU, torch.float32) == PLAIN
    assert PLAIN.explain(1) == "step: plain"
    assert "activations of 1 of 1 layers recomputed" in ExecutionOptions(checkpointed_layers=1).explain(1)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend to have the kernels of a GPU."""
    monkeypatch.setattr(options, "supports_varlen", lambda *_: True)
    monkeypatch.setattr(options, "find_spec", lambda _: object())
    monkeypatch.setattr(options, "supports_nf4_linear", lambda _: True)


def phi35(**changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = phi35_config()
    config.update(changes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.usefixtures("kernels")
def test_settings_switch_options_on_and_off() -> None:
    model = phi35()

    def chosen(**settings: Any) -> ExecutionOptions:
        return ExecutionOptions.choose(TrainConfig(**settings), model, CUDA, torch.bfloat16)

    assert chosen(compile="off").compiled is False
    assert chosen(compile="auto", max_steps=500).compiled is True
    assert chosen(compile="auto", max_steps=20).compiled is False
    assert chosen(compile="on", max_steps=20).compiled is True
    assert chosen().cuda_graphs is True
    assert chosen(cuda_graphs="off").cuda_graphs is False
    assert chosen(cuda_graphs="on", alpha="learned").cuda_graphs is False
    assert chosen(shard_base=True).cuda_graphs is False
    assert chosen(shard_base=True).nf4_kernel is True
    assert all(chosen(**settings).cpu_embeddings for settings in ({}, {"compile": "off"}, {"shard_base": True}))
    assert "input embeddings in host memory" in chosen().explain(32)


@pytest.mark.usefixtures("kernels")
def test_embeddings_stay_on_the_cpu_unless_they_are_the_head() -> None:
    """The GPU's dtype does not matter; a training on the CPU has nothing to move."""
    tied = phi35(tie_word_embeddings=True)
    for dtype in (torch.bfloat16, torch.float16):
        assert ExecutionOptions.choose(CONFIG, phi35(), CUDA, dtype).cpu_embeddings
        assert not ExecutionOptions.choose(CONFIG, tied, CUDA, dtype).cpu_embeddings
    assert not ExecutionOptions.choose(CONFIG, phi35(), CPU, torch.float32).cpu_embeddings
