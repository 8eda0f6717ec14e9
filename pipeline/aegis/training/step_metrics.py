"""Copies a step's numbers from the device, and checks them on the host when they arrive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aegis.errors import DivergedError, IntegrityError
from aegis.training.optimizer import NUMBERS

MAX_SKIPPED = 20
"""Maximum number of overflows in a row; after more, float16's loss scaling will not find a scale any more."""
_LEFT_SO = 1e-4
"""Orthogonality loss beyond rounding: a dense R of 3,072 rows has 1e-8, the same R cast to bfloat16 has 1e-2."""


@dataclass(frozen=True)
class StepMetrics:
    """The numbers of one step.

    Attributes:
        task_loss: nats per trained token of the data.
        keep_kl: KL(base ‖ trained), nats per token of kept text; None in a step without any.
        keep_weight: its weight in the step's loss; 0 in a step without kept text.
        orthogonality_loss: ‖RᵀR − I‖²_F.
        targets: trained tokens of the data.
        skipped: float16 overflowed, and the update was left out.
        stop_requested: a process was asked to end.
    """

    step: int
    task_loss: float
    keep_kl: float | None
    keep_weight: float
    orthogonality_loss: float
    grad_norm: float
    alpha: float
    targets: int
    skipped: bool
    stop_requested: bool = False


class StepCheck:
    """Checks the numbers of steps, in order.

    Args:
        scales: whether float16's loss scaling may skip updates.
    """

    def __init__(self, *, scales: bool) -> None:
        self._scales = scales
        self._skipped_in_a_row = 0

    def check(self, step: int, targets: int, keep_weight: float, values: Sequence[float]) -> StepMetrics:
        """Make a step's metrics from `values`, in the order of NUMBERS.

        Args:
            keep_weight: weight of the keep loss; 0 if the step has no kept text.

        Raises:
            DivergedError: loss or gradients were NaN or Inf; nothing has been updated since.
            IntegrityError: the soul got no gradient, so it is not in the graph; or its R is not a rotation any more.
        """
        found = dict(zip(NUMBERS, values, strict=True))
        ortho, norm = found["orthogonality_loss"], found["grad_norm"]
        skipped = self._refuse_nonsense(step, found["task_loss"], found["keep_loss"], ortho, norm)
        if ortho > _LEFT_SO:
            raise IntegrityError("train.left_so", done=step + 1, defect=math.sqrt(ortho))
        if targets and not skipped and found["soul_norm"] == 0:
            raise IntegrityError("train.no_gradient", step=step + 1)
        keep_kl = found["keep_loss"] / keep_weight if keep_weight else None
        return StepMetrics(
            step,
            found["task_loss"],
            keep_kl,
            keep_weight,
            ortho,
            norm,
            found["alpha"],
            targets,
            skipped,
            stop_requested=found["stop_requested"] > 0,
        )

    def _refuse_nonsense(self, step: int, task: float, keep: float, ortho: float, norm: float) -> bool:
        losses = math.isfinite(task) and math.isfinite(keep)
        if losses and math.isfinite(ortho) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            return False
        self._skipped_in_a_row += 1
        if self._scales and losses and self._skipped_in_a_row <= MAX_SKIPPED:
            return True  # float16 overflowed in the gradient: the scaler skips the update and lowers its scale
        raise DivergedError("train.diverged", step=step + 1, loss=task + keep, norm=norm)


class PendingStep:
    """A step that the device works on.

    Args:
        check: makes the step's metrics from its numbers, in the order of NUMBERS.
        numbers: tensor on the device; the next step overwrites it.
    """

    def __init__(self, step: int, check: Callable[[Sequence[float]], StepMetrics], numbers: Tensor) -> None:
        self.step = step
        self._check = check
        self._done: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._done = torch.cuda.Event()
            self._done.record()
        else:
            self._numbers = numbers.clone()

    def done(self) -> bool:
        """Whether `read` would return at once."""
        return self._done is None or self._done.query()

    def read(self) -> StepMetrics:
        """Wait for the step and return its numbers.

        Raises:
            DivergedError, IntegrityError: as `StepCheck.check`.
        """
        if self._done is not None:
            self._done.synchronize()
        return self._check(self._numbers.tolist())
