"""Which ways are chosen, and that they give the plain way's steps where a CPU can take them (the rest: test_gpu.py)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from aegis.config.settings import TrainConfig
from aegis.training.execution import options
from aegis.training.execution.checkpointing import ActivationStore, Slot
from aegis.training.execution.options import (
    PLAIN,
    ExecutionOptions,
    activation_bytes,
    host_embeddings,
    is_offloaded,
    offloaded_bytes,
)
from aegis.training.state import TrainState
from aegis.training.step import Stepper
from tests.training.conftest import MakeState, noise, phi35_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CONFIG = TrainConfig(lora_r=2, learning_rate=1e-2, warmup_steps=0, annealing_steps=2, lora_dropout=0.3)
GIB = 2**30


def losses(state: TrainState, length: int = 12) -> list[float]:
    stepper = Stepper(state, CONFIG)
    pairs = [[noise(step, length=length), noise(step + 9, length=length)] for step in range(3)]
    return [stepper.take(step, pair).task_loss for step, pair in enumerate(pairs)]


def test_recomputed_layers_take_the_same_steps(make_state: MakeState) -> None:
    """Dropout and all, to the bit; another seed's do not."""
    plain, ours = make_state(CONFIG), make_state(CONFIG)
    way = ExecutionOptions(checkpointed_layers=1)
    way.install(ours.model, 12)
    assert losses(replace(ours, options=way)) == losses(plain)
    assert losses(make_state(CONFIG, seed=1)) != losses(make_state(CONFIG))
    for name, parameter in ours.parameters().items():
        assert torch.equal(parameter, plain.parameters()[name]), name


@pytest.mark.usefixtures("partitioned")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("parked", [2, 3, 4])
def test_parked_layers_take_the_same_steps(make_state: MakeState, monkeypatch: pytest.MonkeyPatch, parked: int) -> None:
    """What those that are parked keep goes to the keeper, once a pass and layer; all layers are compiled alike.

    A micro-batch has as many tokens as a weight has rows, and no weight is taken for what tokens leave.
    """
    resting: list[int] = []
    started: list[ActivationStore] = []

    class Seen(ActivationStore):
        """Stands in for one with a GPU."""

        def start(self) -> None:
            started.append(self)
            super().start()

        def keep(self, tensor: torch.Tensor) -> Slot:
            assert tensor.data_ptr() not in weights
            return super().keep(tensor)

        def rest(self, hidden: torch.Tensor) -> None:
            resting.append(len(self._kept))
            super().rest(hidden)

    monkeypatch.setattr(options, "HostKeeper", Seen)
    plain, ours = make_state(CONFIG, layers=5), make_state(CONFIG, layers=5)
    weights = {parameter.data_ptr() for parameter in ours.model.parameters()}
    ExecutionOptions(compiled=True, offloaded_layers=parked).install(ours.model, 16)
    torch._dynamo.utils.counters.clear()
    assert losses(ours, 16) == pytest.approx(losses(plain, 16), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert resting == [parked] * 6  # three steps of two micro-batches
    assert len(started) == 6
    for name, parameter in ours.parameters().items():
        torch.testing.assert_close(parameter, plain.parameters()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("layers", "parked"), [(n, k) for n in (2, 3, 4, 8, 32) for k in range(n)])
def test_parked_layers_are_spread_and_the_last_ones_are_none_of_them(layers: int, parked: int) -> None:
    """No gap is longer than another by more than one, but for the last: three layers there, if so many may stay."""
    places = [number for number in range(layers) if is_offloaded(number, layers, parked)]
    assert len(places) == parked
    gaps = [after - before for before, after in pairwise(places)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    if parked:
        assert places[0] == 0
        assert layers - 1 - places[-1] >= min(3, layers - parked)


def test_a_layer_is_parked_or_recomputed() -> None:
    assert "of 2 of 32 layers wait in the host's memory" in ExecutionOptions(compiled=True, offloaded_layers=2).explain(
        32
    )
    for more in ({"compiled": False}, {"compiled": True, "recomputed": 1}):
        with pytest.raises(AssertionError, match="parked"):
            ExecutionOptions(offloaded_layers=2, **more)


def test_a_cpu_is_left_plain(make_state: MakeState) -> None:
    base = make_state(CONFIG).model.get_base_model()
    assert ExecutionOptions.choose(CONFIG, base, CPU, torch.float32) == PLAIN
    told = CONFIG.model_copy(update={"cuda_graphs": "on"})
    assert ExecutionOptions.choose(told, base, CPU, torch.float32) == PLAIN
    assert PLAIN.explain(1) == "step: plain"
    assert "activations of 1 of 1 layers recomputed" in ExecutionOptions(checkpointed_layers=1).explain(1)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a GPU that is not here."""
    monkeypatch.setattr(options, "supports_packed", lambda *_: True)
    monkeypatch.setattr(options, "find_spec", lambda _: object())


def phi35(**changes: Any) -> Any:
    from transformers import AutoModelForCausalLM

    config = phi35_config()
    config.update(changes)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.mark.usefixtures("kernels")
def test_what_is_said_is_done() -> None:
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
    assert chosen(shard_base=True).nf4_kernel is False
    assert all(chosen(**way).cpu_embeddings for way in ({}, {"compile": "off"}, {"shard_base": True}))
    assert "input embeddings in the host's memory" in chosen().explain(32)


def test_a_cap_on_the_process_is_minded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100 * GIB, 120 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 2 * GIB)
    for fraction, free in ((1.0, 100), (0.1, 10)):
        monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda _, f=fraction: f)
        assert options.free_bytes(CUDA) == pytest.approx(free * GIB)


def test_activations_of_a_layer_are_counted() -> None:
    """Phi-3.5-mini: 70 KB a token in 16 bit (6 · 3072 + 2 · 8192 numbers); grouped heads keep less."""
    config = phi35().config
    assert activation_bytes(config, 1, 2) == 2 * (6 * 3072 + 2 * 8192) == 69_632
    # in the host's memory every piece takes a power of two
    assert offloaded_bytes(config, 512, 2) == 6 * 512 * 8192 + 2 * 512 * 16384
    config.num_key_value_heads = 8
    assert activation_bytes(config, 10, 2) == 20 * (4 * 3072 + 2 * 768 + 2 * 8192)


@pytest.mark.usefixtures("kernels")
def test_embeddings_stay_with_the_host_unless_they_are_the_head(make_state: MakeState) -> None:
    """Whatever the GPU, and on none but a GPU; a GPU that is not here is stood in for by no device at all."""
    tied = phi35(tie_word_embeddings=True)
    for dtype in (torch.bfloat16, torch.float16):
        assert ExecutionOptions.choose(CONFIG, phi35(), CUDA, dtype).cpu_embeddings
        assert not ExecutionOptions.choose(CONFIG, tied, CUDA, dtype).cpu_embeddings
    assert not ExecutionOptions.choose(CONFIG, phi35(), CPU, torch.float32).cpu_embeddings
    assert host_embeddings(make_state(CONFIG).model) is not None  # on a CPU the host is all there is
    model = make_state(CONFIG).model
    embeddings = model.get_base_model().get_input_embeddings()
    moved: list[str] = []
    embeddings.to = moved.append
    for way in (PLAIN, ExecutionOptions(checkpointed_layers=1)):
        way.install(model, 12)
        assert moved == []
    ExecutionOptions(cpu_embeddings=True).install(model, 12)
    assert moved == ["cpu"]
