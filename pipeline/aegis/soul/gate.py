"""Computes the gate: α as a function of the step, g = sigmoid(α), and the phase of α."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

ALPHA_START = -5.0
GOLDEN_RATIO = 1.618
_STABLE_BELOW = -4.5
_GOLDEN_WITHIN = 1e-3


class Phase(Enum):
    STABLE = "stable"
    TRANSITIONING = "transitioning"
    GOLDEN = "golden"


@dataclass(frozen=True)
class AlphaSchedule:
    """α as a pure function of the optimizer step: constant, linear, constant."""

    warmup_steps: int
    annealing_steps: int
    start: float = ALPHA_START
    target: float = GOLDEN_RATIO

    def __call__(self, step: int) -> float:
        """Return α for step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.start
        done = step - self.warmup_steps
        if done >= self.annealing_steps:
            return self.target
        return self.start + done / self.annealing_steps * (self.target - self.start)

    @property
    def last_step(self) -> int:
        """The first step at which α has reached its target."""
        return self.warmup_steps + self.annealing_steps


def gate(alpha: float) -> float:
    """Return g = sigmoid(α)."""
    return 1 / (1 + math.exp(-alpha)) if alpha >= 0 else math.exp(alpha) / (1 + math.exp(alpha))


def phase(alpha: float, target: float = GOLDEN_RATIO) -> Phase:
    """Return the phase of α's transition from its start to `target`."""
    if alpha <= _STABLE_BELOW:
        return Phase.STABLE
    if abs(alpha - target) < _GOLDEN_WITHIN:
        return Phase.GOLDEN
    return Phase.TRANSITIONING
