"""The learning rate as a function of the step: warm-up, then the schedule."""

from __future__ import annotations

import math
from collections.abc import Callable

from aegis.config.train_settings import TrainConfig


def learning_rate_factor(config: TrainConfig) -> Callable[[int], float]:
    """Return the factor of all learning rates as a function of the step, from 0."""
    warmup = config.lr_warmup_steps
    steps = max(1, config.max_steps - warmup)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if config.lr_schedule == "constant":
            return 1.0
        done = (step - warmup) / steps
        return 1 - done if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * (step - warmup) / steps))

    return factor
