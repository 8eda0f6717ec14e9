"""One optimizer step, from the host's side: what is set before it, what is launched, and what its numbers say.

Nothing here waits for the device. A step is launched, and its numbers are read when the next one is under way; an
update that must not happen has been held back on the device by then (`training.update`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.errors import DivergedError, IntegrityError
from aegis.messages import phrase
from aegis.soul.gate import AlphaSchedule
from aegis.training.batch import MicroBatch
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.execution.cuda_graphs import GraphRecorder
from aegis.training.objective import summed_loss
from aegis.training.state import TrainState
from aegis.training.update import NUMBERS, Update, rate_factor

_MAX_SKIPPED = 20
"""Overflows in a row after which float16's loss scaling will not find a scale any more."""
_LEFT_SO = 1e-4
"""Orthogonality loss that is no rounding: a dense R of 3,072 rows comes to 1e-8, one cast to bfloat16 to 1e-2."""
_EAGER_STEPS = 2
"""Steps taken one kernel at a time before the step is recorded: libraries choose and load their kernels in them."""
STARTING_STEPS = _EAGER_STEPS + 1
"""Steps that take longer than those that follow: the last of them is recorded first."""


@dataclass(frozen=True)
class StepMetrics:
    """What a step came to: task loss (nats a token), orthogonality loss ‖RᵀR − I‖²_F, gradient norm, trained tokens.

    `skipped` is set when float16 overflowed and the update was left out; `asked` when a process was asked to end.
    """

    step: int
    task_loss: float
    orthogonality_loss: float
    grad_norm: float
    alpha: float
    targets: int
    skipped: bool
    stop_requested: bool = False


class Stepper:
    """Takes optimizer steps; a step is a pure function of the trainee's state, its number and the data.

    Args:
        together: the processes that share each step.

    With `trainee.acceleration.captured` the step is replayed as CUDA graphs after the first ones; every batch must then
    have the same shape.
    """

    def __init__(self, state: TrainState, config: TrainConfig, group: ProcessGroup = SINGLE) -> None:
        self.state = state
        self.config = config
        self.schedule = AlphaSchedule(
            config.warmup_steps, config.annealing_steps, config.alpha_start, config.alpha_target
        )
        self._group = group
        self._factor = rate_factor(config)
        self._update = Update(state, config)
        self._device = state.soul.skew.device
        self._share = torch.zeros((), device=self._device)
        self._looked = torch.zeros((), device=self._device)
        self._skipped_in_a_row = 0
        self._capture = state.options.cuda_graphs
        self._taken = 0
        self._slot: MicroBatch | None = None
        self._replays: dict[str, Callable[[], None]] = {}

    def take(self, step: int, batches: Sequence[MicroBatch]) -> StepMetrics:
        """Take step `step`, counted from 0, over the given micro-batches, and wait for its numbers.

        Raises:
            DivergedError, IntegrityError: as `launch` and `Launched.read`.
        """
        return self.launch(step, batches).read()

    def launch(
        self, step: int, batches: Sequence[MicroBatch], targets: int | None = None, asked: bool = False
    ) -> PendingStep:
        """Start step `step`; the device has it to do when this returns.

        Args:
            targets: trained tokens of the step in all processes; those of `batches` if None.
            asked: whether this process was asked to end, which the step's numbers tell the others.

        Raises:
            EnvironmentFault: another process has ended.
        """
        targets = sum(batch.trained for batch in batches) if targets is None else targets
        learning = self._set(step, targets)
        if self._capture and self._taken >= _EAGER_STEPS and not self._replays:
            self._record(batches[0])
        self._run("begin", self._update.zero)
        for number, batch in enumerate(batches):
            self.state.adapters.set_seeds(self._seeds(step, self._group.rank * len(batches) + number))
            self._pass(batch)
        self._run("gather", self._update.collect)
        self._update.asked.fill_(asked)
        self._group.all_reduce(self._update.shared)
        self._run("settle", lambda: self._update.apply(resting=None if learning else self.state.soul.alpha))
        self._taken += 1
        return PendingStep(self, step, targets, self._update.numbers)

    @torch.no_grad()
    def eval_loss(self, batch: MicroBatch) -> Tensor:
        """Sum of the cross-entropies of a batch without dropout: a scalar on the device, overwritten by the next."""
        if self._replays:
            self._fill(batch)
            self._replays["look"]()
        else:
            self._look_into(batch.to(self._device))
        return self._looked

    def _set(self, step: int, targets: int) -> bool:
        """Set what depends on the step alone; returns whether α, if it can learn, learns in this step."""
        scheduled = self.config.alpha == "scheduled" or (
            self.config.alpha == "then-learned" and step <= self.schedule.last_step
        )
        if scheduled:
            with torch.no_grad():
                self.state.soul.alpha.fill_(self.schedule(step))
        for parameters in self.state.optimizer.param_groups:
            parameters["lr"].fill_(parameters["base_lr"] * self._factor(step))
        self._share.fill_(1 / max(1, targets))
        return self.config.alpha != "then-learned" or step >= self.schedule.last_step

    def _seeds(self, step: int, number: int) -> list[int]:
        """Dropout seeds of one forward pass, one a layer.

        Args:
            number: of the micro-batch among those of all processes, so that it does not matter who takes it.
        """
        text = f"{self.config.seed}/{step}/{number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        draw = np.random.Generator(np.random.Philox(key=seed))
        low, high = -(2**31), 2**31
        return [int(value) for value in draw.integers(low, high, len(self.state.adapters))]

    def _pass(self, batch: MicroBatch) -> None:
        if self._replays:
            self._fill(batch)
        self._run("pass", lambda: self._backward(batch.to(self._device)))

    def _backward(self, batch: MicroBatch) -> None:
        loss = summed_loss(self.state, batch) * self._share
        self.state.scaler.scale(loss).backward()
        self._update.task_loss.add_(loss.detach())

    def _run(self, name: str, function: Callable[[], object]) -> None:
        self._replays.get(name, function)()

    def _fill(self, batch: MicroBatch) -> None:
        assert self._slot is not None
        batch.copy_into(self._slot)

    def _record(self, like: MicroBatch) -> None:
        """Record the parts of a step; without them, if this base's forward pass cannot be recorded, all stays eager."""
        slot = self._slot = like.to(self._device)
        # what has not run yet is run once before: a kernel compiled or loaded on its first use spoils a recording
        self._look_into(slot)
        # the graphs have memory of their own; what the steps so far have left would stand beside it unused
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        recorder = GraphRecorder()
        try:
            self._replays = {
                "begin": recorder.record(self._update.zero),
                "pass": recorder.record(lambda: self._backward(slot)),
                "gather": recorder.record(self._update.collect),
                "settle": recorder.record(self._update.apply),
                "look": recorder.record(lambda: self._look_into(slot)),
            }
        except RuntimeError as error:
            self._capture, self._replays = False, {}
            self.state.soul.discard_cache()
            progress.warn(phrase("train.not_recorded", error=_first_line(error)))

    @torch.no_grad()
    def _look_into(self, slot: MicroBatch) -> None:
        self._looked.copy_(summed_loss(self.state, slot))

    def check(self, step: int, targets: int, values: Sequence[float]) -> StepMetrics:
        """Make a step's numbers of what the device left.

        Raises:
            DivergedError: loss or gradients were NaN or Inf; nothing has been updated since.
            IntegrityError: the soul got no gradient, so it is not in the graph; or its R is no rotation any more.
        """
        found = dict(zip(NUMBERS, values, strict=True))
        loss, ortho, norm = found["task_loss"], found["orthogonality_loss"], found["grad_norm"]
        skipped = self._refuse_nonsense(step, loss, ortho, norm)
        if ortho > _LEFT_SO:
            raise IntegrityError("train.left_so", done=step + 1, defect=math.sqrt(ortho))
        if targets and not skipped and found["soul_norm"] == 0:
            raise _soul_left_out(step)
        return StepMetrics(step, loss, ortho, norm, found["alpha"], targets, skipped, found["asked"] > 0)

    def _refuse_nonsense(self, step: int, loss: float, ortho: float, norm: float) -> bool:
        if math.isfinite(loss) and math.isfinite(ortho) and math.isfinite(norm):
            self._skipped_in_a_row = 0
            return False
        self._skipped_in_a_row += 1
        if self.state.scaler.is_enabled() and math.isfinite(loss) and self._skipped_in_a_row <= _MAX_SKIPPED:
            return True  # float16 overflowed in the gradient: the scaler leaves the update out and lowers its scale
        raise DivergedError("train.diverged", step=step + 1, loss=loss, norm=norm)


class PendingStep:
    """A step under way."""

    def __init__(self, stepper: Stepper, step: int, targets: int, numbers: Tensor) -> None:
        self.step = step
        self._stepper, self._targets = stepper, targets
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
            DivergedError, IntegrityError: as `Stepper.judge`.
        """
        if self._done is not None:
            self._done.synchronize()
        return self._stepper.check(self.step, self._targets, self._numbers.tolist())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _soul_left_out(step: int) -> IntegrityError:
    return IntegrityError("train.no_gradient", step=step + 1)
