"""Rounds the weights of a finish at certain steps, so that a resumed training computes with the same ones.

On a CPU every step rounds. On a GPU one rounding takes longer than a step, and every fourth step gave back no more than
every eighth (tools/README.md): there the steps between two roundings use the weights of the earlier one. Adapter and
soul as they were then are a part of the state and of its checkpoints; after an evaluation, which rounds for itself, and
after a resume the weights are rounded for them again.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.training.state import TrainState

_PERIOD = {"cuda": 8}
"""Steps between two roundings, by the type of the device; 1 on others."""


class FinishRounding:
    """Rounds `state.shipped` before steps and evaluations."""

    def __init__(self, state: TrainState) -> None:
        self._state = state
        self._period = _PERIOD.get(state.soul.skew.device.type, 1)
        self._is_for_steps = False

    def before_step(self, step: int) -> None:
        """Give the model the weights of step `step`, counted from 0; the gate is already that of the step."""
        state = self._state
        if step % self._period == 0 or state.rounded_for is None:
            self._round()
            state.rounded_for = self._values() if self._period > 1 else None
        elif not self._is_for_steps:
            now = self._values()
            self._set(state.rounded_for)
            self._round()
            self._set(now)
            state.adapters.cast()
        self._is_for_steps = True

    def before_evaluation(self) -> None:
        """Give the model the weights of adapter and soul as they are now."""
        self._round()
        self._is_for_steps = False

    def _round(self) -> None:
        assert self._state.shipped is not None
        self._state.adapters.cast()
        self._state.shipped.refresh()

    def _values(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self._state.trained_tensors().items()}

    @torch.no_grad()
    def _set(self, values: dict[str, Tensor]) -> None:
        for name, value in self._state.trained_tensors().items():
            value.copy_(values[name])
