"""Tests of one optimizer step: rates, decay and float16's overflow, and that it depends only on its inputs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.errors import DivergedError, IntegrityError
from aegis.training import step as module
from aegis.training import step_metrics
from aegis.training.learning_rate import learning_rate_factor
from aegis.training.objective import summed_loss
from aegis.training.state import TrainState
from aegis.training.step import Stepper
from tests.training.conftest import MakeState, noise

CONFIG = TrainConfig(lora_r=2, learning_rate=1e-2, warmup_steps=0, annealing_steps=2, lora_dropout=0.0)


def values(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in state.parameters().items() if p.requires_grad}


def moved(before: dict[str, torch.Tensor], state: TrainState) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in values(state).items())


def test_the_soul_has_no_weight_decay_and_its_own_rate(make_state: MakeState) -> None:
    config = CONFIG.model_copy(update={"weight_decay": 0.3, "soul_learning_rate": 5e-3, "alpha": "learned"})
    state = make_state(config)
    adapter, rotation, alpha = state.optimizer.param_groups
    assert (adapter["base_lr"], adapter["weight_decay"], len(adapter["params"])) == (1e-2, 0.3, 8)
    assert (rotation["base_lr"], rotation["weight_decay"], rotation["params"]) == (5e-3, 0.0, [state.soul.skew])
    assert (alpha["base_lr"], alpha["weight_decay"], alpha["params"]) == (5e-3, 0.0, [state.soul.alpha])
    scheduled = make_state(CONFIG)
    assert [group["base_lr"] for group in scheduled.optimizer.param_groups] == [1e-2, 1e-2]
    everything = [p for group in scheduled.optimizer.param_groups for p in group["params"]]
    assert scheduled.soul.alpha not in set(everything)
    assert {id(p) for p in everything} == {id(p) for p in scheduled.parameters().values() if p.requires_grad}


def test_decay_pulls_the_adapter_and_not_the_soul(make_state: MakeState) -> None:
    """Steps on windows without targets have a zero gradient: what moves then is moved by decay alone."""
    config = CONFIG.model_copy(update={"weight_decay": 0.5, "orthogonality_weight": 0.0})
    state = make_state(config)
    with torch.no_grad():
        state.soul.skew.normal_(0, 0.3)
    before = values(state)
    Stepper(state, config).take(0, [noise(0, trained=False)])
    after = values(state)
    assert torch.equal(after["soul.skew"], before["soul.skew"])
    for name, value in after.items():
        if "lora_A" in name:
            assert torch.allclose(value, before[name] * (1 - 0.5 * 1e-2), rtol=1e-6), name


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    ],
)
def test_learning_rates_follow_the_schedule(make_state: MakeState, schedule: str, wanted: list[float]) -> None:
    """The factor of each step, and the rate each group really has when it is taken."""
    config = CONFIG.model_copy(update={"lr_schedule": schedule, "max_steps": 4, "soul_learning_rate": 3e-3})
    assert [learning_rate_factor(config)(step) for step in range(4)] == pytest.approx(wanted)
    state = make_state(config)
    stepper = Stepper(state, config)
    for step, factor in enumerate(wanted):
        stepper.take(step, [noise(step)])
        rates = [group["lr"].item() for group in state.optimizer.param_groups]
        assert rates == pytest.approx([1e-2 * factor, 3e-3 * factor])


def test_micro_batches_give_the_gradients_of_one_batch(make_state: MakeState) -> None:
    """Windows in one forward pass or in two: the same step, though they hold different numbers of targets."""
    one, two = make_state(CONFIG), make_state(CONFIG)
    short, full = noise(1, windows=1, length=5), noise(2, windows=3)
    both = Stepper(one, CONFIG).take(0, [short, full])
    parts = [summed_loss(two, batch).item() for batch in (short, full)]
    assert both.targets == short.trained + full.trained == 2 + 27
    assert both.task_loss == pytest.approx(sum(parts) / both.targets, rel=1e-5)
    assert both.task_loss != pytest.approx((parts[0] / 2 + parts[1] / 27) / 2, rel=1e-3)


def test_a_step_depends_only_on_its_number(make_state: MakeState) -> None:
    """Whatever was drawn before, dropout in step k is that of step k; another step's, or seed's, is another."""
    config = CONFIG.model_copy(update={"lora_dropout": 0.5})

    def loss(step: int, seed: int = 42) -> float:
        state = make_state(config)
        with torch.no_grad():
            for name, parameter in state.parameters().items():
                if "lora_B" in name:
                    parameter.fill_(0.5)
        torch.rand(step * 3 + 1)
        chosen = config.model_copy(update={"seed": seed, "warmup_steps": 99})
        return Stepper(state, chosen).take(step, [noise(0)]).task_loss

    with torch.random.fork_rng([]):
        assert loss(3) == loss(3)
        assert loss(3) != loss(4)
        assert loss(3) != loss(3, seed=43)


def scaler(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


def test_loss_scaling_does_not_change_a_step(make_state: MakeState) -> None:
    """Scaled by a power of two and unscaled again, gradients are the same but for matrix_exp's rounding."""
    plain, scaled = make_state(CONFIG), make_state(CONFIG, scaler=scaler(1024.0))
    one, other = Stepper(plain, CONFIG), Stepper(scaled, CONFIG)
    before = values(plain)
    for step in range(3):
        first, second = one.take(step, [noise(step)]), other.take(step, [noise(step)])
        assert (first.task_loss, first.grad_norm) == pytest.approx((second.task_loss, second.grad_norm), rel=1e-4)
        assert not second.skipped
    for name, value in values(scaled).items():
        assert torch.allclose(value, values(plain)[name], atol=1e-4), name
        assert not torch.allclose(value, before[name], atol=1e-3), name


def test_an_overflow_skips_the_update_and_lowers_the_scale(make_state: MakeState) -> None:
    """Nothing changes until the scale fits; each skip is reported; then training continues."""
    state = make_state(CONFIG, scaler=scaler(2.0**127))
    stepper, before = Stepper(state, CONFIG), values(state)
    skipped = 0
    for step in range(15):
        scale = state.scaler.get_scale()
        numbers = stepper.take(step, [noise(step)])
        assert math.isfinite(numbers.task_loss)
        if not numbers.skipped:
            break
        skipped += 1
        assert state.scaler.get_scale() == scale / 2
        assert not moved(before, state)
    assert 0 < skipped < 15
    assert moved(before, state)


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    summed = summed_loss

    def poisoned(state, batch):  # type: ignore[no-untyped-def]
        loss = summed(state, batch)
        loss.register_hook(lambda gradient: gradient * torch.inf)
        return loss

    monkeypatch.setattr(module, "summed_loss", poisoned)


def test_too_many_overflows_in_a_row_are_divergence(make_state: MakeState, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the allowed skips in a row end it, with every parameter as it was."""
    state = make_state(CONFIG, scaler=scaler(1024.0))
    stepper, before = Stepper(state, CONFIG), values(state)
    poison(monkeypatch)
    for step in range(step_metrics.MAX_SKIPPED):
        assert stepper.take(step, [noise(step)]).skipped
    with pytest.raises(DivergedError, match=f"diverged at step {step_metrics.MAX_SKIPPED + 1}"):
        stepper.take(step_metrics.MAX_SKIPPED, [noise(0)])
    assert not moved(before, state)


def test_a_step_without_overflow_resets_the_count(make_state: MakeState, monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(CONFIG, scaler=scaler(1024.0))
    stepper = Stepper(state, CONFIG)
    for _ in range(2):
        with monkeypatch.context() as patch:
            poison(patch)
            for step in range(step_metrics.MAX_SKIPPED):
                assert stepper.take(step, [noise(step)]).skipped
        assert not stepper.take(99, [noise(99)]).skipped


def test_without_scaling_an_overflow_is_divergence_at_once(
    make_state: MakeState, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = make_state(CONFIG)
    before, stepper = values(state), Stepper(state, CONFIG)
    with monkeypatch.context() as patch:
        poison(patch)
        pending = stepper.launch(0, [noise(0)])
    # the next step is under way before the host has read the numbers of this one, and must not build on it
    stepper.launch(1, [noise(1)])
    with pytest.raises(DivergedError, match="diverged at step 1") as caught:
        pending.read()
    assert caught.value.exit_code == 6
    assert not moved(before, state)


def test_a_soul_that_is_not_in_the_graph_is_an_error(make_state: MakeState) -> None:
    state = make_state(CONFIG)
    outside = make_state(CONFIG, seed=1).soul
    stray = replace(state, soul=outside)
    with pytest.raises(IntegrityError, match="the soul got no gradient at step 1"):
        Stepper(stray, CONFIG).take(0, [noise(0)])


@pytest.mark.parametrize("rotation", ["so8", "dense"])
def test_an_r_that_left_so_n_is_found_in_the_same_step(make_state: MakeState, rotation: str) -> None:
    """One percent longer than a rotation fails; rounding passes, logged or not."""
    state = make_state(CONFIG.model_copy(update={"rotation": rotation}))
    stepper = Stepper(state, CONFIG)
    assert stepper.take(0, [noise(0)]).orthogonality_loss < 1e-8
    with torch.no_grad():
        state.soul.start *= 1.01
    with pytest.raises(IntegrityError, match=r"left SO\(n\) at step 2"):
        stepper.take(1, [noise(1)])
