"""The optimizer and its step on the device: collects, checks, clips and applies gradients; the host never waits for it.

If a loss or a gradient is NaN or Inf, the device itself holds the update back, with the flag that torch's fused AdamW
has for float16's overflows. The host reads the numbers when they arrive, and may then stop the training.
"""

from __future__ import annotations

import torch
from torch import nn

from aegis.config.train_settings import TrainConfig
from aegis.soul.module import Soul
from aegis.training.state import TrainState

NUMBERS = ("task_loss", "keep_loss", "orthogonality_loss", "grad_norm", "soul_norm", "stop_requested", "alpha")
"""The values in `Update.numbers` after `Update.apply`, in this order."""


def make_optimizer(model: nn.Module, soul: Soul, config: TrainConfig) -> torch.optim.AdamW:
    """Make AdamW with one group for the adapter, one for the rotation and one for a learned α; rates are tensors.

    The soul has no weight decay: it would turn a blockwise R back towards its start, and α towards zero. A dense R it
    would leave alone, whose skew is zero before every step.
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


class Update:
    """Collects all gradients in one buffer, and applies them.

    Attributes:
        shared: float32, the buffer that the processes sum between `collect` and `apply`; the next five are views of it.
        gradients: the gradients of all trainable parameters, one after the other; each `.grad` is a view of it.
        task_loss: scalar, this process's share.
        keep_loss: scalar, this process's share of the weighted KL(base ‖ trained) on kept text.
        soul_norm: scalar, 0 if the soul got no gradient in this process.
        stop_requested: scalar, 1 if this process was asked to end; the caller sets it.
        numbers: (7,) float32, see NUMBERS.
    """

    def __init__(self, state: TrainState, config: TrainConfig) -> None:
        self._state, self._config = state, config
        self._parameters = [p for p in state.parameters().values() if p.requires_grad]
        device = state.soul.skew.device
        sizes = [parameter.numel() for parameter in self._parameters]
        self.shared = torch.zeros(sum(sizes) + 4, device=device)
        self.gradients = self.shared[:-4]
        self.task_loss, self.keep_loss, self.soul_norm, self.stop_requested = self.shared[-4:].unbind()
        for parameter, gradient in zip(self._parameters, self.gradients.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter)
        self.numbers = torch.zeros(len(NUMBERS), device=device)
        self._ortho = torch.zeros((), device=device)
        self._halted = torch.zeros((), device=device)

    def zero(self) -> None:
        """Zero the buffers, cast the adapter, and compute the rotation once for all backward passes of the step."""
        self.gradients.zero_()
        self.task_loss.zero_()
        self.keep_loss.zero_()
        self._state.adapters.cast()
        self._state.soul.cache_rotation()

    def collect(self) -> None:
        """Pass the cached rotation's gradient on to the soul's parameters."""
        norm, ortho = self._state.soul.release()
        self.soul_norm.copy_(norm)
        self._ortho.copy_(ortho)

    def apply(self, *, frozen: nn.Parameter | None = None) -> None:
        """Clip the gradients and apply them, or hold the update back; then fill `numbers`.

        Args:
            frozen: a parameter that has a gradient and must not change in this step.
        """
        state, frozen_gradient = self._state, None
        if frozen is not None:
            # the optimizer skips a parameter without a gradient, and makes no moments for it
            frozen_gradient, frozen.grad = frozen.grad, None
            assert frozen_gradient is not None
            frozen_gradient.zero_()
        state.scaler.unscale_(state.optimizer)
        norm = self.gradients.norm()
        self.gradients.mul_((self._config.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        alpha = state.soul.alpha.detach()
        found = [self.task_loss, self.keep_loss, self._ortho, norm, self.soul_norm, self.stop_requested, alpha]
        self.numbers.copy_(torch.stack(found))
        if state.scaler.is_enabled():
            state.scaler.step(state.optimizer)
            state.scaler.update()
        else:
            # once an update is held back, all later ones are, until the host has read the numbers
            self._halted.logical_or_(self.numbers.isfinite().all().logical_not())
            state.optimizer.found_inf, state.optimizer.grad_scale = self._halted, None  # type: ignore[attr-defined]
            state.optimizer.step()
        state.soul.retract()
        self.numbers[-1].copy_(alpha)  # α after the step
        if frozen is not None:
            frozen.grad = frozen_gradient
