"""Tests that the learning rate follows its schedule, after the warm-up."""

from __future__ import annotations

import math
from typing import Any

import pytest

from aegis.config.train_settings import TrainConfig
from aegis.training.learning_rate import learning_rate_factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_warms_up_only_if_configured(schedule: str) -> None:
    plain = learning_rate_factor(TrainConfig.model_validate({"max_steps": 100, "lr_schedule": schedule}))
    before: dict[str, Any] = {
        "constant": lambda step: 1.0,
        "linear": lambda step: 1 - step / 100,
        "cosine": lambda step: 0.5 * (1 + math.cos(math.pi * step / 100)),
    }
    assert [plain(step) for step in range(100)] == [before[schedule](step) for step in range(100)]
    warm = learning_rate_factor(
        TrainConfig.model_validate({"max_steps": 100, "lr_schedule": schedule, "lr_warmup_steps": 4})
    )
    assert [warm(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warm(99) == pytest.approx(plain(99), abs=0.02)
