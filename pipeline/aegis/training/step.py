"""One optimizer step, from the host's side: what is set before it, what is launched, and what its numbers say.

Nothing here waits for the device. A step is launched, and its numbers are read when the next one is under way; an
update that must not happen has been held back on the device by then (`training.update`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.errors import first_line
from aegis.messages import phrase
from aegis.soul.gate import AlphaSchedule
from aegis.training.batch import MicroBatch
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.execution.cuda_graphs import GraphRecorder
from aegis.training.keep.schedule import NOTHING_KEPT, KeptShare
from aegis.training.objective import summed_divergence, summed_loss
from aegis.training.state import TrainState
from aegis.training.step_metrics import PendingStep, StepCheck, StepMetrics
from aegis.training.update import Update, rate_factor

_EAGER_STEPS = 2
"""Steps taken one kernel at a time before the step is recorded: libraries choose and load their kernels in them."""
STARTING_STEPS = _EAGER_STEPS + 1
"""Steps that take longer than those that follow: the last of them is recorded first."""


class Stepper:
    """Takes optimizer steps; a step is a pure function of the trainee's state, its number and the data.

    Args:
        group: the processes that share each step.
        kept_example: any kept batch, where kept text is trained on.

    With `state.options.cuda_graphs` the step is replayed as CUDA graphs after the first ones; every batch must then
    have the same shape, and every kept batch that of `kept_example`.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        group: ProcessGroup = SINGLE,
        kept_example: MicroBatch | None = None,
    ) -> None:
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
        self._keep_share = torch.zeros((), device=self._device)
        self._looked = torch.zeros((), device=self._device)
        self._check = StepCheck(scales=state.scaler.is_enabled(), keep_weight=config.keep_weight)
        self._capture = state.options.cuda_graphs
        self._taken = 0
        self._kept_example = kept_example
        self._slots: dict[str, MicroBatch] = {}
        self._replays: dict[str, Callable[[], None]] = {}

    def take(self, step: int, batches: Sequence[MicroBatch], kept: KeptShare = NOTHING_KEPT) -> StepMetrics:
        """Take step `step`, counted from 0, over the given micro-batches, and wait for its numbers.

        Raises:
            DivergedError, IntegrityError, EnvironmentFault: as `launch` and `PendingStep.read`.
        """
        return self.launch(step, batches, kept=kept).read()

    def launch(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        targets: int | None = None,
        asked: bool = False,
        kept: KeptShare = NOTHING_KEPT,
    ) -> PendingStep:
        """Start step `step`; the device has it to do when this returns.

        Args:
            targets: trained tokens of the step in all processes; those of `batches` if None.
            asked: whether this process was asked to end, which the step's numbers tell the others.
            kept: the kept text of the step.

        Raises:
            EnvironmentFault: another process has ended.
        """
        targets = sum(batch.trained for batch in batches) if targets is None else targets
        learning = self._set(step, targets, kept.targets)
        if self._capture and self._taken >= _EAGER_STEPS and not self._replays:
            self._record(batches[0])
        self._run("begin", self._update.zero)
        for number, batch in enumerate(batches):
            self.state.adapters.set_seeds(self._seeds(step, self._group.rank * len(batches) + number))
            self._pass("pass", batch, self._backward)
        if kept.batches:
            self._keep(kept.batches)
        self._run("gather", self._update.collect)
        self._update.asked.fill_(asked)
        self._group.all_reduce(self._update.shared)
        self._run("settle", lambda: self._update.apply(resting=None if learning else self.state.soul.alpha))
        self._taken += 1
        return PendingStep(step, partial(self._check.check, step, targets, kept.targets), self._update.numbers)

    @torch.no_grad()
    def eval_loss(self, batch: MicroBatch) -> Tensor:
        """Sum of the cross-entropies of a batch without dropout: a scalar on the device, overwritten by the next."""
        self._pass("look", batch, self._look_into)
        return self._looked

    def _set(self, step: int, targets: int, kept_targets: int) -> bool:
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
        self._keep_share.fill_(self.config.keep_weight / max(1, kept_targets))
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

    def _keep(self, batches: Sequence[MicroBatch]) -> None:
        """The kept passes: without dropout, since what is kept is the model as it will be used."""
        self.state.adapters.dropout.switch(on=False)
        for batch in batches:
            self._pass("keep", batch, self._keep_backward)
        self.state.adapters.dropout.switch(on=True)

    def _pass(self, name: str, batch: MicroBatch, work: Callable[[MicroBatch], None]) -> None:
        """Work on a batch: by replaying the piece of this name, if it was recorded."""
        replay = self._replays.get(name)
        if replay is None:
            work(batch.to(self._device))
            return
        batch.copy_into(self._slots[name])
        replay()

    def _backward(self, batch: MicroBatch) -> None:
        loss = summed_loss(self.state, batch) * self._share
        self.state.scaler.scale(loss).backward()
        self._update.task_loss.add_(loss.detach())

    def _keep_backward(self, batch: MicroBatch) -> None:
        loss = summed_divergence(self.state, batch) * self._keep_share
        self.state.scaler.scale(loss).backward()
        self._update.keep_loss.add_(loss.detach())

    def _run(self, name: str, function: Callable[[], object]) -> None:
        self._replays.get(name, function)()

    def _record(self, example: MicroBatch) -> None:
        """Record the parts of a step; without them, if this base's forward pass cannot be recorded, all stays eager."""
        slot = example.to(self._device)
        kept_slot = None if self._kept_example is None else self._kept_example.to(self._device)
        # what has not run yet is run once before: a kernel compiled or loaded on its first use spoils a recording
        self._look_into(slot)
        if kept_slot is not None:
            self._update.zero()
            self._keep_backward(kept_slot)
            self.state.soul.discard_cache()
        # the graphs have memory of their own; what the steps so far have left would stand beside it unused
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        recorder = GraphRecorder()
        pieces: dict[str, Callable[[], object]] = {"begin": self._update.zero, "pass": lambda: self._backward(slot)}
        if kept_slot is not None:
            kept = kept_slot
            pieces["keep"] = lambda: self._keep_backward(kept)
            self._slots["keep"] = kept
        pieces |= {
            "gather": self._update.collect,
            "settle": self._update.apply,
            "look": lambda: self._look_into(slot),
        }
        self._slots |= {"pass": slot, "look": slot}
        try:
            self._replays = {name: recorder.record(piece) for name, piece in pieces.items()}
        except RuntimeError as error:
            self._capture, self._replays = False, {}
            self.state.soul.discard_cache()
            progress.warn(phrase("train.not_recorded", error=first_line(error)))

    @torch.no_grad()
    def _look_into(self, slot: MicroBatch) -> None:
        self._looked.copy_(summed_loss(self.state, slot))
