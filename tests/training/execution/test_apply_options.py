"""Tests that applied options take the steps of the plain model where a CPU can run them (the rest: test_gpu.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.training.answers import next_tokens
from aegis.training.execution import apply_options as module
from aegis.training.execution.activation_checkpointing import ActivationStore, Slot
from aegis.training.execution.apply_options import apply_options, host_embeddings
from aegis.training.execution.options import PLAIN, ExecutionOptions
from aegis.training.kernels.varlen_attention import NAME
from aegis.training.state import TrainState
from aegis.training.step import Stepper
from tests.training.conftest import MakeState, noise

CONFIG = TrainConfig(lora_r=2, learning_rate=1e-2, warmup_steps=0, annealing_steps=2, lora_dropout=0.3)


def losses(state: TrainState, length: int = 12) -> list[float]:
    stepper = Stepper(state, CONFIG)
    pairs = [[noise(step, length=length), noise(step + 9, length=length)] for step in range(3)]
    return [stepper.take(step, pair).task_loss for step, pair in enumerate(pairs)]


def test_checkpointed_layers_take_the_same_steps(make_state: MakeState) -> None:
    """Equal to the bit, with dropout; another seed differs."""
    plain, ours = make_state(CONFIG), make_state(CONFIG)
    options = ExecutionOptions(checkpointed_layers=1)
    apply_options(options, ours.model, 12)
    assert losses(replace(ours, options=options)) == losses(plain)
    assert losses(make_state(CONFIG, seed=1)) != losses(make_state(CONFIG))
    for name, parameter in ours.parameters().items():
        assert torch.equal(parameter, plain.parameters()[name]), name


@pytest.mark.usefixtures("partitioned")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("offloaded", [2, 3, 4])
def test_offloaded_layers_take_the_same_steps(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch, offloaded: int
) -> None:
    """The store gets what each offloaded layer keeps, once per pass; all layers share one compilation.

    A micro-batch has as many tokens as a weight has rows, and no weight is mistaken for a tensor with a row per token.
    """
    passes: list[int] = []
    drained: list[int] = []

    class Seen(ActivationStore):
        """Stands in for the store of a GPU, and counts the layers of each pass."""

        def __init__(self, _device: torch.device) -> None:
            super().__init__()

        def start(self) -> None:
            super().start()
            passes.append(0)

        def begin(self) -> None:
            super().begin()
            passes[-1] += 1

        def push(self, tensor: torch.Tensor) -> Slot:
            assert tensor.data_ptr() not in weights
            return super().push(tensor)

        def drain(self, hidden: torch.Tensor) -> None:
            super().drain(hidden)
            drained.append(passes[-1])

    monkeypatch.setattr(module, "HostActivationStore", Seen)
    plain, ours = make_state(CONFIG, layers=5), make_state(CONFIG, layers=5)
    weights = {parameter.data_ptr() for parameter in ours.model.parameters()}
    apply_options(ExecutionOptions(compiled=True, offloaded_layers=offloaded), ours.model, 16)
    torch._dynamo.utils.counters.clear()
    assert losses(ours, 16) == pytest.approx(losses(plain, 16), rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert passes == drained == [offloaded] * 6  # three steps of two micro-batches
    for name, parameter in ours.parameters().items():
        torch.testing.assert_close(parameter, plain.parameters()[name], rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("partitioned")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("checkpointed", [0, 3])
def test_an_evaluation_compiles_nothing_more(make_state: MakeState, checkpointed: int) -> None:
    """Its loss is the plain model's, without dropout and without a gradient; the steps after it are the same."""
    plain, ours = make_state(CONFIG, layers=3), make_state(CONFIG, layers=3)
    apply_options(ExecutionOptions(compiled=True, checkpointed_layers=checkpointed), ours.model, 12)
    torch._dynamo.utils.counters.clear()
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = []
    for state in (plain, ours):
        stepper = Stepper(state, CONFIG)
        with stepper.evaluating():
            found.append(stepper.eval_loss(noise(3)).item())
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-5)


def test_embeddings_move_to_the_cpu_only_if_the_option_is_on(make_state: MakeState) -> None:
    """A recorded call stands in for the move, because on a CPU they are there already."""
    assert host_embeddings(make_state(CONFIG).model) is not None
    model = make_state(CONFIG).model
    embeddings = model.get_base_model().get_input_embeddings()
    moved: list[str] = []
    embeddings.to = moved.append
    for options in (PLAIN, ExecutionOptions(checkpointed_layers=1)):
        apply_options(options, model, 12)
        assert moved == []
    apply_options(ExecutionOptions(cpu_embeddings=True), model, 12)
    assert moved == ["cpu"]


@pytest.mark.usefixtures("partitioned")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_answers_between_the_steps_compile_nothing_and_change_nothing(make_state: MakeState) -> None:
    """The answers are the plain model's. The control runs the layers as they are: each shape is compiled."""
    plain, ours = make_state(CONFIG, layers=3), make_state(CONFIG, layers=3)
    options = ExecutionOptions(compiled=True, varlen_attention=True)
    apply_options(options, ours.model, 16)
    prompts = [[5, 6, 7, 8, 9], [11, 12]]
    wanted = [*losses(plain), next_tokens(plain, prompts, 8, ()), *losses(plain)]
    torch._dynamo.utils.counters.clear()
    before = losses(ours)
    # the loss of the LM head, which is not the layers', would be compiled with these options too
    found = next_tokens(replace(ours, options=options), prompts, 8, ())
    after = losses(ours)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert found == wanted.pop(3)
    assert [*before, *after] == pytest.approx(wanted, rel=1e-5)
    assert ours.model.get_base_model().config._attn_implementation == NAME
    with torch.no_grad():
        ours.model(input_ids=torch.tensor(prompts[:1]), use_cache=False)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 1
