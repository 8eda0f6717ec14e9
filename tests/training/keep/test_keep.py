"""Tests of kept text in a step: zero divergence at the start, a gradient towards the base, and shared like the task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from aegis.config.train_settings import TrainConfig
from aegis.data.kept import fill
from aegis.data.packing import Windows
from aegis.model.soul_hook import decoder_of
from aegis.training.batch import BatchShape
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.keep.batches import KeptBatches, KeptText
from aegis.training.objective import summed_divergence
from aegis.training.state import TrainState
from aegis.training.step import Stepper
from tests.training.conftest import VOCABULARY, MakeState, noise

CONFIG = TrainConfig(
    lora_r=4, learning_rate=1e-2, warmup_steps=0, annealing_steps=2, batch_size=2, keep_every=1, lora_dropout=0.0
)
LENGTH = 20


def windows(seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, VOCABULARY, size).astype(np.int32) for size in (12, 8, 20, 9, 11, 14, 20, 20, 20, 20)]
    return fill(texts, 8, LENGTH, 0)


@torch.no_grad()
def base_states(state: TrainState, given: Windows) -> Tensor:
    """Return the final norm's output before any step: the adapter's B is zero, and the soul comes after the norm."""
    found: list[Tensor] = []
    decoder: Any = decoder_of(state.model)
    handle = decoder.norm.register_forward_hook(lambda _module, _given, output: found.append(output))
    batch = given.batch(range(len(given)))
    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    decoder(input_ids=ids, position_ids=positions, use_cache=False)
    handle.remove()
    return found[0]


@dataclass
class Case:
    state: TrainState
    batches: KeptBatches


def make(make_state: MakeState, config: TrainConfig = CONFIG, *, group: ProcessGroup = SINGLE, **options: Any) -> Case:
    state, given = make_state(config, **options), windows()
    text = KeptText(given, base_states(state, given))
    return Case(state, KeptBatches(text, config, group, BatchShape.of(given, config.batch_size)))


def values(state: TrainState) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in state.parameters().items() if p.requires_grad}


def test_the_divergence_before_the_first_step_is_zero(make_state: MakeState) -> None:
    """With identity and counter-scale, whatever the gate; states of another base diverge."""
    case = make(make_state)
    with torch.no_grad():
        case.state.soul.alpha.fill_(1.618)
    share = case.batches.of_step(0)
    assert summed_divergence(case.state, share.batches[0]).item() == pytest.approx(0, abs=1e-4)
    other = make(make_state, seed=5)
    assert summed_divergence(case.state, other.batches.of_step(0).batches[0]).item() / share.targets > 0.01


def test_keep_kl_is_the_mean_per_token_and_its_gradient_is_weighted(make_state: MakeState) -> None:
    """Against autograd through plain logits in float64; with half the weight half of the gradient."""
    grads = []
    for weight in (1.0, 0.5):
        config = CONFIG.model_copy(update={"keep_weight": weight, "max_grad_norm": 1e9, "learning_rate": 1e-12})
        case = make(make_state, config)
        with torch.no_grad():
            for name, parameter in case.state.parameters().items():
                if "lora_B" in name:
                    parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(1))
        share = case.batches.of_step(0)
        (batch,) = share.batches
        head = case.state.model.get_output_embeddings().weight.double()
        hidden = decoder_of(case.state.model)(
            input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
        ).last_hidden_state
        rows = batch.rows[batch.targets >= 0]
        trained = (hidden.flatten(0, 1)[rows].double() @ head.T).log_softmax(-1)
        assert batch.base_hidden is not None
        base = (batch.base_hidden[batch.targets >= 0].double() @ head.T).log_softmax(-1)
        wanted = torch.nn.functional.kl_div(trained, base, reduction="sum", log_target=True) / share.targets
        (weight * wanted).backward()
        expected = {n: p.grad.clone() for n, p in case.state.parameters().items() if p.grad is not None}
        # windows without targets: what is left of the loss is the kept text
        stepper = Stepper(case.state, config)
        found = stepper.take(0, [noise(0, trained=False)], share)
        assert found.keep_kl == pytest.approx(wanted.item(), rel=1e-5)
        assert found.keep_kl > 1e-3
        grads.append({n: p.grad.clone() for n, p in case.state.parameters().items() if p.grad is not None})
        for name, value in expected.items():
            if "lora" in name:
                assert torch.allclose(grads[-1][name], value, rtol=1e-3, atol=1e-7), name
    for name, value in grads[0].items():
        assert torch.allclose(value / 2, grads[1][name], rtol=1e-3, atol=1e-7), name


def test_steps_without_kept_text_have_no_divergence(make_state: MakeState) -> None:
    case = make(make_state, CONFIG.model_copy(update={"keep_every": 3}))
    stepper = Stepper(case.state, CONFIG)
    found = [stepper.take(step, [noise(step)], case.batches.of_step(step)).keep_kl for step in range(7)]
    assert [value is None for value in found] == [False, True, True, False, True, True, False]


def test_dropout_is_off_in_kept_passes_and_on_again_after_them(make_state: MakeState) -> None:
    """At the start the divergence is nothing for any dropout only if there is none; the task's loss has it."""
    config = CONFIG.model_copy(update={"lora_dropout": 0.5})
    case, still = make(make_state, config), make(make_state)
    for one in (case, still):
        with torch.no_grad():
            for name, parameter in one.state.parameters().items():
                if "lora_B" in name:
                    parameter.fill_(0.05)
    with_dropout = Stepper(case.state, config).take(0, [noise(0)], case.batches.of_step(0))
    without = Stepper(still.state, CONFIG).take(0, [noise(0)], still.batches.of_step(0))
    assert with_dropout.keep_kl == pytest.approx(without.keep_kl, rel=1e-5)
    assert with_dropout.task_loss != pytest.approx(without.task_loss, rel=1e-5)


def test_a_step_with_kept_text_depends_on_nothing_hidden(make_state: MakeState) -> None:
    """Steps 3 and 4 alone are those that came after 0 to 2, to the bit."""
    config = CONFIG.model_copy(update={"lora_dropout": 0.3, "keep_every": 2})

    def steps(case: Case, numbers: range) -> list[tuple[float, float | None]]:
        stepper = Stepper(case.state, config)
        found = [stepper.take(step, [noise(step)], case.batches.of_step(step)) for step in numbers]
        return [(one.task_loss, one.keep_kl) for one in found]

    whole = make(make_state, config)
    steps(whole, range(3))
    moved, moments = values(whole.state), whole.state.optimizer.state_dict()
    wanted = steps(whole, range(3, 5))
    resumed = make(make_state, config)
    with torch.no_grad():
        for name, parameter in resumed.state.parameters().items():
            if name in moved:
                parameter.copy_(moved[name])
    assert steps(resumed, range(3, 5))[0] == wanted[0]
    assert moments


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_passes_of_a_step(make_state: MakeState, world_size: int) -> None:
    """Together they take what one process takes alone, and each knows the tokens of all."""
    accumulation = 6
    alone = make(make_state, CONFIG.model_copy(update={"gradient_accumulation_steps": accumulation}))
    wanted = alone.batches.of_step(1)
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": accumulation // world_size})
    shares = [
        make(make_state, config, group=ProcessGroup(rank, world_size)).batches.of_step(1) for rank in range(world_size)
    ]
    assert {share.targets for share in shares} == {wanted.targets}
    found = sorted(batch.input_ids.tolist() for share in shares for batch in share.batches)
    assert found == sorted(batch.input_ids.tolist() for batch in wanted.batches)


def test_processes_with_a_sharded_base_take_the_same_number_of_kept_passes(make_state: MakeState) -> None:
    """A surplus pass counts nothing."""
    config = CONFIG.model_copy(update={"shard_base": True, "keep_every": 2})
    shares = [make(make_state, config, group=ProcessGroup(rank, 2)).batches.of_step(0) for rank in range(2)]
    assert [len(share.batches) for share in shares] == [1, 1]
    assert [share.batches[0].trained > 0 for share in shares] == [True, False]
    case = make(make_state)
    assert summed_divergence(case.state, shares[1].batches[0]) == 0


def test_float16s_loss_scaling_does_not_change_a_kept_step(make_state: MakeState) -> None:
    plain = make(make_state)
    scaled = make(make_state, scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))
    for step in range(3):
        one, other = (
            Stepper(case.state, CONFIG).take(step, [noise(step)], case.batches.of_step(step))
            for case in (plain, scaled)
        )
        assert (one.keep_kl, one.grad_norm) == pytest.approx((other.keep_kl, other.grad_norm), rel=1e-3, abs=1e-6)


def test_every_kept_batch_has_one_shape(make_state: MakeState) -> None:
    """As a recorded step needs them, the example among them."""
    case = make(make_state)
    batches = [case.batches.example(), *(case.batches.of_step(step).batches[0] for step in range(4))]
    for batch in batches:
        assert batch.base_hidden is not None
        assert batch.edges is not None
        assert len(batch.base_hidden) == len(batch.rows) == len(batch.targets)
    assert (
        len(
            {
                (batch.rows.shape, batch.edges.shape, batch.input_ids.shape)
                for batch in batches
                if batch.edges is not None
            }
        )
        == 1
    )
