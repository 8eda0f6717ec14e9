"""Warns of settings that are known to hurt the base, with the measured figures.

The figures are KL(base ‖ trained) in nats per token on text that the base wrote itself, for SmolLM2-135M-Instruct after
250 steps on Japanese prose, three seeds; LoRA alone has 0.23 (tools/study_soul.py, tools/README.md).
"""

from __future__ import annotations

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.messages import phrase


def harmful_settings(config: TrainConfig) -> list[str]:
    """Return one sentence per harmful setting; none for the defaults."""
    found = []
    if config.rotation_init == "random":
        found.append("advice.random_start" if config.counter_scale else "advice.random_start_unscaled")
    elif not config.counter_scale:
        found.append("advice.unscaled")
    return [phrase(key) for key in found]


def warn_of_harm(config: TrainConfig) -> None:
    """Warn of each harmful setting."""
    for sentence in harmful_settings(config):
        progress.warn(sentence)
