"""One optimizer step: the soul's gate is set, the loss is taken, and nothing is updated unless all of it is sound."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aegis.config import TrainConfig
from aegis.data.packing import IGNORED, Batch
from aegis.errors import DivergedError, IntegrityError
from aegis.model.attach import decoder_of
from aegis.soul.gate import AlphaSchedule
from aegis.soul.module import Soul
from aegis.training.checkpoint import Trainee
from aegis.training.loss import head_loss

_MAX_SKIPPED = 20
"""Overflows in a row after which float16's loss scaling will not find a scale any more."""


@dataclass(frozen=True)
class DeviceBatch:
    """Windows on the device, with the trained rows picked out before they went there.

    Attributes:
        input_ids, position_ids: (windows, max_length) int64.
        rows: (n,) int64, positions in the flattened windows whose next token is trained.
        targets: (n,) int64, those tokens.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor

    @classmethod
    def make(cls, batch: Batch, device: torch.device) -> DeviceBatch:
        labels = torch.from_numpy(batch.labels)
        following = torch.full_like(labels, IGNORED)
        following[:, :-1] = labels[:, 1:]
        rows = (following.flatten() != IGNORED).nonzero().squeeze(-1)
        parts = (
            torch.from_numpy(batch.input_ids),
            torch.from_numpy(batch.position_ids),
            rows,
            following.flatten()[rows],
        )
        return cls(*(part.to(device, non_blocking=True) for part in parts))


@dataclass(frozen=True)
class StepNumbers:
    """What a step came to: task loss (nats a token), orthogonality loss ‖RᵀR − I‖²_F, gradient norm, trained tokens.

    `skipped` is set when float16 overflowed and the update was left out.
    """

    task_loss: float
    orthogonality_loss: float
    grad_norm: float
    targets: int
    skipped: bool


def summed_loss(trainee: Trainee, batch: DeviceBatch) -> Tensor:
    """Sum of the cross-entropies of a batch's targets, in the graph if there is one."""
    head = trainee.model.get_output_embeddings()
    # no attention mask: transformers then keeps packed documents apart by their positions
    hidden = decoder_of(trainee.model)(
        input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False
    ).last_hidden_state
    return head_loss(hidden.flatten(0, 1)[batch.rows], head.weight, getattr(head, "bias", None), batch.targets)


def make_optimizer(model: nn.Module, soul: Soul, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with a group for the adapter, one for the rotation and one for a learned α.

    Weight decay stays off the soul: it would turn R back towards its random start and α towards zero.
    """
    adapter = [p for p in model.parameters() if p.requires_grad]
    rate = config.soul_learning_rate or config.learning_rate
    groups = [
        {"params": adapter, "lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": [soul.skew], "lr": rate, "weight_decay": 0.0},
    ]
    if soul.alpha.requires_grad:
        groups.append({"params": [soul.alpha], "lr": rate, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, fused=soul.skew.device.type == "cuda")
    for group in optimizer.param_groups:
        group["base_lr"] = group["lr"]
    return optimizer


def rate_factor(config: TrainConfig) -> Callable[[int], float]:
    """The learning rates' factor as a function of the step."""
    if config.lr_schedule == "constant":
        return lambda step: 1.0
    if config.lr_schedule == "linear":
        return lambda step: 1 - step / config.max_steps
    return lambda step: 0.5 * (1 + math.cos(math.pi * step / config.max_steps))


class Stepper:
    """Takes optimizer steps; `take(step, batches)` is a pure function of the trainee's state, the step and the data."""

    def __init__(self, trainee: Trainee, config: TrainConfig) -> None:
        self.trainee = trainee
        self.config = config
        self.schedule = AlphaSchedule(
            config.warmup_steps, config.annealing_steps, config.alpha_start, config.alpha_target
        )
        self._factor = rate_factor(config)
        self._parameters = [p for p in trainee.parameters().values() if p.requires_grad]
        self._skipped_in_a_row = 0

    def take(self, step: int, batches: Sequence[DeviceBatch]) -> StepNumbers:
        """Take step `step`, counted from 0, over the given micro-batches.

        Raises:
            DivergedError: loss or gradients are NaN or Inf; parameters and optimizer are as they were before.
            IntegrityError: the soul got no gradient, so it is not in the graph.
        """
        trainee, soul = self.trainee, self.trainee.soul
        self._set_gate(step)
        for group in trainee.optimizer.param_groups:
            group["lr"] = group["base_lr"] * self._factor(step)
        # dropout in step k depends on the seed and k alone: resuming needs no generator's state
        torch.manual_seed(_seed_of_step(self.config.seed, step))

        targets = sum(batch.targets.numel() for batch in batches)
        task_loss = torch.zeros((), device=soul.skew.device)
        for batch in batches:
            mean_loss = summed_loss(trainee, batch) / max(1, targets)
            trainee.scaler.scale(mean_loss).backward()
            task_loss += mean_loss.detach()
        # looked at before the orthogonality loss, whose rounding would pass for a gradient
        if targets and soul.skew.grad is None:
            raise _soul_left_out(step)
        soul_norm = torch.zeros_like(task_loss) if soul.skew.grad is None else soul.skew.grad.norm()
        orthogonality = soul.orthogonality_loss()
        trainee.scaler.scale(self.config.orthogonality_weight * orthogonality).backward()

        trainee.scaler.unscale_(trainee.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        loss, ortho, norm, moved = torch.stack([task_loss, orthogonality.detach(), grad_norm, soul_norm]).tolist()
        skipped = self._judge(step, loss, ortho, norm)
        if targets and not skipped and moved == 0:
            raise _soul_left_out(step)
        if soul.alpha.requires_grad and self.config.alpha == "then-learned" and step < self.schedule.last_step:
            soul.alpha.grad = None
        trainee.scaler.step(trainee.optimizer)
        trainee.scaler.update()
        trainee.optimizer.zero_grad(set_to_none=True)
        return StepNumbers(loss, ortho, norm, targets, skipped)

    def _set_gate(self, step: int) -> None:
        mode = self.config.alpha
        if mode == "scheduled" or (mode == "then-learned" and step <= self.schedule.last_step):
            with torch.no_grad():
                self.trainee.soul.alpha.fill_(self.schedule(step))

    def _judge(self, step: int, loss: float, ortho: float, norm: float) -> bool:
        if math.isfinite(loss) and math.isfinite(ortho) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            return False
        self._skipped_in_a_row += 1
        if self.trainee.scaler.is_enabled() and math.isfinite(loss) and self._skipped_in_a_row <= _MAX_SKIPPED:
            return True  # float16 overflowed in the gradient: the scaler leaves the update out and lowers its scale
        self.trainee.optimizer.zero_grad(set_to_none=True)
        raise DivergedError(
            f"training diverged at step {step + 1}: loss {loss:.4g}, gradient norm {norm:.4g}",
            why="the update was not made; adapter, soul and the last checkpoint are untouched",
            fix="look at the rows named below; a lower --learning-rate or --max-grad-norm is the usual cure",
        )


def _seed_of_step(seed: int, step: int) -> int:
    # hashed, since torch's generator on a CPU looks at the low 32 bits alone
    return int.from_bytes(hashlib.sha256(f"{seed}/{step}".encode()).digest()[:8], "little")


def _soul_left_out(step: int) -> IntegrityError:
    return IntegrityError(
        f"the soul got no gradient at step {step + 1}",
        why="the base's forward pass does not go through it, so training would leave it as it started",
        fix="please report this base model: it cannot be trained as it is",
    )
