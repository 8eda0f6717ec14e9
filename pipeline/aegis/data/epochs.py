"""How often a training sees its data: epochs as steps, and steps as passes over the windows."""

from __future__ import annotations

import math

from aegis.config.train_settings import TrainConfig
from aegis.errors import UsageError
from aegis.messages.validation import MAX_STEPS


def windows_per_step(config: TrainConfig, processes: int = 1) -> int:
    """Return the number of windows of one optimizer step in all processes together."""
    return config.batch_size * config.gradient_accumulation_steps * processes


def with_steps(config: TrainConfig, windows: int, processes: int = 1) -> TrainConfig:
    """Return the config with the steps that its epochs take; without epochs, as it is.

    Args:
        windows: number of training windows.

    Raises:
        UsageError: they take more steps than a training may have.
    """
    if config.epochs is None:
        return config
    steps = math.ceil(config.epochs * windows / windows_per_step(config, processes))
    if steps > MAX_STEPS:
        raise UsageError("epochs.too_many_steps", epochs=config.epochs, windows=windows, steps=steps, most=MAX_STEPS)
    return config.model_copy(update={"max_steps": max(1, steps)})


def passes(config: TrainConfig, windows: int, processes: int = 1) -> float:
    """Return how often the complete training sees each window, on average."""
    return config.max_steps * windows_per_step(config, processes) / windows
