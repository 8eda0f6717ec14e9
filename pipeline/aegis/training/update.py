"""The device's half of an optimizer step: gradients gathered, judged, clipped and applied, and the host asked nothing.

An update that must not happen (a loss or a gradient that is NaN or Inf) is held back on the device, by the flag that
torch's fused AdamW takes for float16's overflows; the host reads the numbers when they arrive and may then give up.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from aegis.config.settings import TrainConfig
from aegis.soul.module import Soul
from aegis.training.state import TrainState

NUMBERS = ("task_loss", "keep_loss", "orthogonality_loss", "grad_norm", "soul_norm", "asked", "alpha")
"""What `Update.apply` leaves in `Update.numbers`, in this order."""


def make_optimizer(model: nn.Module, soul: Soul, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a group for the adapter, one for the rotation and one for a learned α; the rates are tensors.

    Weight decay stays off the soul: it would turn R back towards its random start and α towards zero.
    """
    device = soul.skew.device
    adapter = [p for p in model.parameters() if p.requires_grad]
    rate = config.soul_learning_rate or config.learning_rate
    groups = [
        {"params": adapter, "base_lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": [soul.skew], "base_lr": rate, "weight_decay": 0.0},
    ]
    if soul.alpha.requires_grad:
        groups.append({"params": [soul.alpha], "base_lr": rate, "weight_decay": 0.0})
    for group in groups:
        group["lr"] = torch.tensor(group["base_lr"], device=device)
    return torch.optim.AdamW(groups, fused=True, capturable=device.type == "cuda")


def rate_factor(config: TrainConfig) -> Callable[[int], float]:
    """The learning rates' factor as a function of the step."""
    if config.lr_schedule == "constant":
        return lambda step: 1.0
    if config.lr_schedule == "linear":
        return lambda step: 1 - step / config.max_steps
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / config.max_steps))


class Update:
    """Gradients in one buffer, and what becomes of them.

    Attributes:
        shared: float32, what the processes add up between `collect` and `apply`: the next five, one after the other.
        gradients: every trainable parameter's, one after the other; `.grad` of each is a view of it.
        task_loss: scalar, this process's share.
        keep_loss: scalar, of KL(base ‖ trained) on kept text, weighted; this process's share.
        soul_norm: scalar, 0 if the soul got no gradient here.
        asked: scalar, 1 if this process was asked to end; nothing here sets it.
        numbers: (7,) float32, see NUMBERS.
    """

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        self._trainee, self._config = state, config
        self._parameters = [p for p in state.parameters().values() if p.requires_grad]
        device = state.soul.skew.device
        sizes = [parameter.numel() for parameter in self._parameters]
        self.shared = torch.zeros(sum(sizes) + 4, device=device)
        self.gradients = self.shared[:-4]
        self.task_loss, self.keep_loss, self.soul_norm, self.asked = self.shared[-4:].unbind()
        for parameter, gradient in zip(self._parameters, self.gradients.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.numbers = torch.zeros(len(NUMBERS), device=device)
        self._ortho = torch.zeros((), device=device)
        self._halted = torch.zeros((), device=device)

    def zero(self) -> None:
        """Empty the buffers and build the rotation, once for all backward passes of the step."""
        self.gradients.zero_()
        self.task_loss.zero_()
        self.keep_loss.zero_()
        self._trainee.adapters.cast()
        self._trainee.soul.cache_rotation()

    def collect(self) -> None:
        """Bring the rotation's gradient home."""
        norm, ortho = self._trainee.soul.release()
        self.soul_norm.copy_(norm)
        self._ortho.copy_(ortho)

    def apply(self, *, resting: nn.Parameter | None = None) -> None:
        """Clip and apply, or hold back; leaves `numbers`.

        Args:
            resting: a parameter that has a gradient and must not move yet.
        """
        state, kept = self._trainee, None
        if resting is not None:
            # without a gradient the optimizer passes it by, and makes no moments for it
            kept, resting.grad = resting.grad, None
            assert kept is not None
            kept.zero_()
        state.scaler.unscale_(state.optimizer)
        norm = self.gradients.norm()
        self.gradients.mul_((self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        alpha = state.soul.alpha.detach()
        found = [self.task_loss, self.keep_loss, self._ortho, norm, self.soul_norm, self.asked, alpha]
        self.numbers.copy_(torch.stack(found))
        if state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            # once held back, always held back, until the host has looked: no later step may build on this one
            self._halted.logical_or_(self.numbers.isfinite().all().logical_not())
            state.optimizer.found_inf, state.optimizer.grad_scale = self._halted, None  # type: ignore[attr-defined]
            state.optimizer.step()
        state.soul.retract()
        self.numbers[-1].copy_(alpha)  # as the step leaves it
        if resting is not None:
            resting.grad = kept
