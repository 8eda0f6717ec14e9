"""Tests of epochs as steps and steps as passes over the data, for any number of processes."""

from __future__ import annotations

import pytest

from aegis.config.train_settings import TrainConfig
from aegis.data.epochs import passes, with_steps
from aegis.errors import UsageError


@pytest.mark.parametrize(
    ("epochs", "windows", "batch", "accumulation", "processes", "steps"),
    [
        (3, 100, 1, 1, 1, 300),
        (3, 100, 2, 4, 1, 38),
        (3, 100, 2, 2, 2, 38),
        (0.5, 100, 1, 1, 1, 50),
        (0.001, 9, 4, 1, 1, 1),
    ],
)
def test_epochs_become_steps(
    epochs: float, windows: int, batch: int, accumulation: int, processes: int, steps: int
) -> None:
    config = TrainConfig(epochs=epochs, batch_size=batch, gradient_accumulation_steps=accumulation)
    found = with_steps(config, windows, processes)
    assert found.max_steps == steps
    assert passes(found, windows, processes) >= epochs
    assert passes(found, windows, processes) - epochs < batch * accumulation * processes / windows


def test_more_steps_than_a_training_may_have_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        with_steps(TrainConfig(epochs=1e6), 1000)
    assert "1,000,000,000 steps" in caught.value.why
    assert with_steps(TrainConfig(epochs=1e6), 999).max_steps == 999_000_000


def test_without_epochs_the_steps_are_unchanged() -> None:
    config = TrainConfig(max_steps=77)
    assert with_steps(config, 10) == config
    assert passes(config, 10) == 7.7
