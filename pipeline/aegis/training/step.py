"""Launches optimizer steps: sets learning rates, α and seeds, and runs forward, backward and update on the device.

Nothing here waits for the device. The host reads a step's numbers while the next step runs; by then the device itself
has held back an update that must not happen (`training.optimizer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.errors import first_line
from aegis.merging.shipped_weights import ShippedWeights
from aegis.messages import phrase
from aegis.model.cuda_graphs import GraphRecorder
from aegis.soul.gate import AlphaSchedule
from aegis.training.batch import MicroBatch
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.finish_rounding import FinishRounding
from aegis.training.keep.batches import NOTHING_KEPT, KeptShare
from aegis.training.learning_rate import learning_rate_factor
from aegis.training.objective import summed_divergence, summed_loss
from aegis.training.optimizer import Update
from aegis.training.state import TrainState
from aegis.training.step_metrics import PendingStep, StepCheck, StepMetrics

_EAGER_STEPS = 2
"""Steps that run kernel by kernel before a step is recorded: in them, libraries choose and load their kernels."""
STARTING_STEPS = _EAGER_STEPS + 1
"""The first steps, which take longer than the later ones: the last of them begins with the recording."""


class Stepper:
    """Takes optimizer steps; a step is a pure function of the training state, its number and the data.

    With `state.options.cuda_graphs` later steps are replayed as CUDA graphs; then every batch must have the same shape,
    and every kept batch that of `kept_example`.

    Args:
        group: the processes that share each step.
        kept_example: any kept batch; None if there is no kept text.
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
        self._factor = learning_rate_factor(config)
        self._update = Update(state, config)
        self._device = state.soul.skew.device
        self._share = torch.zeros((), device=self._device)
        self._keep_share = torch.zeros((), device=self._device)
        self._eval_loss = torch.zeros((), device=self._device)
        self._keep_weight = config.keep_weight
        self._check = StepCheck(scales=state.scaler.is_enabled())
        self._capture = state.options.cuda_graphs
        self._taken = 0
        self._rounding: FinishRounding | None = None
        self._kept_example = kept_example
        self._slots: dict[str, MicroBatch] = {}
        self._replays: dict[str, Callable[[], None]] = {}

    def take(self, step: int, batches: Sequence[MicroBatch], kept: KeptShare = NOTHING_KEPT) -> StepMetrics:
        """Take step `step`, counted from 0, over the given micro-batches; wait for its numbers and return them.

        Raises:
            DivergedError, IntegrityError, EnvironmentFault: as `launch` and `PendingStep.read`.
        """
        return self.launch(step, batches, kept=kept).read()

    def launch(
        self,
        step: int,
        batches: Sequence[MicroBatch],
        targets: int | None = None,
        stop_requested: bool = False,
        kept: KeptShare = NOTHING_KEPT,
    ) -> PendingStep:
        """Launch step `step` and return without waiting for it.

        Args:
            targets: trained tokens of the step in all processes; those of `batches` if None.
            stop_requested: whether this process was asked to end; the other processes read it in the step's numbers.
            kept: the kept text of the step.

        Raises:
            EnvironmentFault: another process has ended.
        """
        targets = sum(batch.trained for batch in batches) if targets is None else targets
        learning = self._set(step, targets, kept.targets)
        if self._rounding is not None:
            self._rounding.before_step(step)
        if self._capture and self._taken >= _EAGER_STEPS and not self._replays:
            self._record(batches[0])
        self._run("zero", self._update.zero)
        for number, batch in enumerate(batches):
            self.state.adapters.set_seeds(self._seeds(step, self._group.rank * len(batches) + number))
            self._pass("backward", batch, self._backward)
        if kept.batches:
            self._keep(kept.batches)
        self._run("collect", self._update.collect)
        self._update.stop_requested.fill_(stop_requested)
        self._group.all_reduce(self._update.shared)
        self._run("apply", lambda: self._update.apply(frozen=None if learning else self.state.soul.alpha))
        self._taken += 1
        keep_weight = self._keep_weight if kept.targets else 0.0
        return PendingStep(step, partial(self._check.check, step, targets, keep_weight), self._update.numbers)

    def ship(self, weights: ShippedWeights) -> None:
        """Take all later steps with these weights, which follow adapter and soul; without dropout, as in the file."""
        self.state.shipped, self._rounding = weights, FinishRounding(self.state)
        self._keep_weight = self.config.keep_weight * self.config.finish_keep
        self.state.adapters.dropout.end()
        # the graphs hold the memory of the weights that were replaced
        self._replays, self._slots, self._taken = {}, {}, 0

    def evaluating(self) -> AbstractContextManager[None]:
        """Use the adapters' and the soul's current values, without dropout, while the block runs."""
        if self._rounding is not None:
            self._rounding.before_evaluation()
        return self.state.adapters.without_dropout()

    @torch.no_grad()
    def eval_loss(self, batch: MicroBatch) -> Tensor:
        """Return a batch's summed cross-entropy, a scalar on the device that the next call overwrites.

        The caller is in `evaluating`.
        """
        self._pass("evaluate", batch, self._evaluate)
        return self._eval_loss

    def _set(self, step: int, targets: int, kept_targets: int) -> bool:
        """Set α, learning rates and loss weights of the step; return whether α, if it can learn, learns in it."""
        scheduled = self.config.alpha == "scheduled" or (
            self.config.alpha == "then-learned" and step <= self.schedule.last_step
        )
        if scheduled:
            with torch.no_grad():
                self.state.soul.alpha.fill_(self.schedule(step))
        for parameters in self.state.optimizer.param_groups:
            parameters["lr"].fill_(parameters["base_lr"] * self._factor(step))
        self._share.fill_(1 / max(1, targets))
        self._keep_share.fill_(self._keep_weight / max(1, kept_targets))
        return self.config.alpha != "then-learned" or step >= self.schedule.last_step

    def _seeds(self, step: int, number: int) -> list[int]:
        """Return the dropout seeds of one forward pass, one per layer.

        Args:
            number: the micro-batch's number among those of all processes; so any process can take it.
        """
        text = f"{self.config.seed}/{step}/{number}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
        draw = np.random.Generator(np.random.Philox(key=seed))
        low, high = -(2**31), 2**31
        return [int(value) for value in draw.integers(low, high, len(self.state.adapters))]

    def _keep(self, batches: Sequence[MicroBatch]) -> None:
        """Run the kept passes, without dropout: the keep loss is about the model as it will be used."""
        self.state.adapters.dropout.switch(on=False)
        for batch in batches:
            self._pass("keep", batch, self._keep_backward)
        self.state.adapters.dropout.switch(on=True)

    def _pass(self, name: str, batch: MicroBatch, work: Callable[[MicroBatch], None]) -> None:
        """Run one pass over a batch; replay the graph of this name if it was recorded."""
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
        """Record the parts of a step; if this base's forward pass cannot be recorded, all steps stay eager."""
        slot = example.to(self._device)
        kept_slot = None if self._kept_example is None else self._kept_example.to(self._device)
        # run what has not run yet: a kernel that is compiled or loaded on its first use spoils a recording
        self._evaluate(slot)
        if kept_slot is not None:
            self._update.zero()
            self._keep_backward(kept_slot)
            self.state.soul.discard_cache()
        # the graphs have their own memory; what the previous steps left in the allocator would stay unused beside it
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        recorder = GraphRecorder()
        pieces: dict[str, Callable[[], object]] = {"zero": self._update.zero, "backward": lambda: self._backward(slot)}
        if kept_slot is not None:
            kept = kept_slot
            pieces["keep"] = lambda: self._keep_backward(kept)
            self._slots["keep"] = kept
        pieces |= {
            "collect": self._update.collect,
            "apply": self._update.apply,
            "evaluate": lambda: self._evaluate(slot),
        }
        self._slots |= {"backward": slot, "evaluate": slot}
        try:
            self._replays = {name: recorder.record(piece) for name, piece in pieces.items()}
        except RuntimeError as error:
            self._capture, self._replays = False, {}
            self.state.soul.discard_cache()
            progress.warn(phrase("train.not_recorded", error=first_line(error)))

    @torch.no_grad()
    def _evaluate(self, slot: MicroBatch) -> None:
        self._eval_loss.copy_(summed_loss(self.state, slot))
