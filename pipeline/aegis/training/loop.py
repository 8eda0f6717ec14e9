"""The training loop: takes the steps in order, logs, evaluates, saves and stops.

This is plain torch without transformers' Trainer. Data, dropout and α of step k are pure functions of the seed and k,
so a checkpoint holds only parameters and moments. A resumed run equals the uninterrupted run bit for bit if its kernels
are the same, as on a CPU; kernels that are compiled for a GPU may differ between processes (tools/README.md).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.data.packing import Windows
from aegis.errors import DivergedError, Interrupted
from aegis.model.cuda_graphs import own_stream
from aegis.training.answers import AnswerLog
from aegis.training.best import HeldoutWatch
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.finish import FinishStart
from aegis.training.keep.batches import KeptText
from aegis.training.metrics_log import MetricsLog
from aegis.training.outcome import LoopOutcome, StepsTaken
from aegis.training.state import TrainState
from aegis.training.step import STARTING_STEPS, Stepper
from aegis.training.step_data import StepBatches
from aegis.training.step_metrics import PendingStep
from aegis.training.stop import OTHERS_ASKED, StopRequest, deferred_stop
from aegis.training.tracking import Report

_EVALUATED_WINDOWS = 64
"""Held-out windows per evaluation: enough for two digits of the loss, cheap beside the steps between evaluations."""


class Loop:
    """Runs optimizer steps over `windows`, from the step that `state` has reached.

    Args:
        heldout: windows that are never trained on, or None.
        kept: kept text with the base's states, or None.
        finish: begins the last steps, which have the weights of the quantized file; None if there are none.
        save: called with the number of steps when a checkpoint is due; None to save nothing.
        metrics: file that gets one JSON row per logging step, or None.
        report: gets the same row, or None.
        answers: lets the model answer questions while it is trained, or None.
        group: the processes that share each step; only process 0 passes `save`, `metrics` and `answers`.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        windows: Windows,
        heldout: Windows | None,
        kept: KeptText | None = None,
        *,
        finish: FinishStart | None = None,
        save: Callable[[int], object] | None = None,
        metrics: Path | None = None,
        report: Report | None = None,
        answers: AnswerLog | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.state = state
        self.config = config
        self.heldout = heldout
        self.device = state.soul.skew.device
        self._save = save
        self._answers = answers
        self._group = group
        self._batches = StepBatches(state, config, windows, heldout, kept, group)
        self._log = MetricsLog(config, state.soul, metrics, report, self._batches.windows_per_step / len(windows))
        self._watch = HeldoutWatch()
        self._finish = finish or FinishStart(None)
        self._stepper = Stepper(state, config, group, self._batches.kept_example())

    def run(self, start: int, stop: int) -> LoopOutcome:
        """Take steps [start, stop); there are none if a run was killed between its last step and its publication.

        Raises:
            Interrupted: after a signal, once the step is finished and saved; in all processes after the same step.
            DivergedError: a loss or gradient is NaN or Inf; the error names the step's windows.
            IntegrityError: R left SO(n), or the soul is not in the graph.
            EnvironmentFault: another process has ended.
        """
        if start >= stop:
            self._begin_finish(stop)
            return LoopOutcome(stop, None, self.evaluate(self.heldout) if self.heldout else None, None, None)
        self.state.model.train()
        with (
            own_stream(self.device),
            deferred_stop() as stopping,
            progress.training(start, stop) as watch,
        ):
            taken = StepsTaken(start, stop, stopping, watch)
            for step in range(start, stop):
                self._begin_finish(step)
                self._take(step, taken)
                self._settle(step + 1, taken)
        assert taken.numbers is not None
        return LoopOutcome(
            stop,
            taken.numbers.task_loss,
            taken.heldout,
            self._log.keep_kl,
            taken.throughput.overall_rate(),
            taken.throughput.start_seconds,
        )

    def _begin_finish(self, step: int) -> None:
        if (weights := self._finish.begin(self.state, step)) is not None:
            self._stepper.ship(weights)
            self._batches.forget()
            # the loss of rounded weights is higher: it is no sign that the training has turned
            self._watch = HeldoutWatch()

    def _take(self, step: int, taken: StepsTaken) -> None:
        """Launch a step; while the device works on it, the host reads the previous one."""
        pending = self._launch(step, taken.stopping)
        self._read(taken)
        taken.pending = pending
        if self._group.world_size > 1:
            if step + 1 < taken.stop:
                self._batches.prepare(step + 1)
            # if a process died, the all-reduce never ends. Read before the GPU's queue is full behind it: then this
            # thread would be stuck in a launch, and no signal would reach it
            self._read(taken)
        taken.throughput.add_step(self.config.max_length * self._batches.windows_per_step)

    def _settle(self, done: int, taken: StepsTaken) -> None:
        """Log, evaluate, save and stop, each if it is due after `done` steps.

        Raises:
            Interrupted: after a signal, once the step is saved.
        """
        config, last = self.config, done == taken.stop
        leaving = self._leaving(taken)
        due = done % config.save_steps == 0 or last or leaving
        logged = due or done % config.logging_steps == 0 or done == 1
        warmed_up = done == taken.start + STARTING_STEPS and not last
        if logged or warmed_up:
            self._read(taken)
        if warmed_up:
            taken.throughput.end_warmup()
        if taken.numbers is not None:
            taken.watch.step(done, taken.numbers.step + 1, taken.numbers.task_loss, taken.numbers.alpha)
        if due and self.heldout is not None:
            with taken.throughput.paused():
                taken.heldout = self.evaluate(self.heldout)
            self._watch.add(done, taken.heldout)
        if logged and taken.numbers is not None:
            self._log.write(taken.numbers, due, taken.heldout if due else None, taken.throughput.rate())
        if self._answers is not None and not leaving and self._answers.is_due(done, logged):
            self._read(taken)
            with taken.throughput.paused():
                self._answers.write(done, lambda: taken.stopping.exit_code is not None)
        if due and self._save is not None:
            with taken.throughput.paused():
                self._save(done)
            taken.watch.saved(done)
        if leaving:
            code = taken.stopping.exit_code or OTHERS_ASKED
            name = "train.stopped" if self._save is None else "train.stopped_and_saved"
            raise Interrupted(name, exit_code=code, done=done, stop=taken.stop)

    @torch.no_grad()
    def evaluate(self, windows: Windows) -> float:
        """Return the mean cross-entropy of the first windows in nats per trained token, without dropout.

        The processes share the batches; all of them must call this, and all get the same result.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size, group = self.config.batch_size, self._group
        evaluated = min(len(windows), _EVALUATED_WINDOWS)
        turns = -(-evaluated // (size * group.world_size))
        with self._stepper.evaluating():
            # all processes take the same number of batches, some perhaps empty: a sharded base needs all of them
            for start in range(size * group.rank, turns * size * group.world_size, size * group.world_size):
                total += self._stepper.eval_loss(
                    self._batches.batch(windows, range(start, min(start + size, evaluated)))
                )
        group.all_reduce(total)
        return total.item() / max(1, int(windows.trained_per_window[:evaluated].sum()))

    def _leaving(self, taken: StepsTaken) -> bool:
        """Whether the loop must stop now. Several processes decide by a step's numbers, which are the same in all."""
        if self._group.world_size == 1:
            return taken.stopping.exit_code is not None
        return taken.numbers is not None and taken.numbers.stop_requested

    def _launch(self, step: int, stopping: StopRequest) -> PendingStep:
        data = self._batches.of_step(step)
        return self._stepper.launch(step, data.batches, data.targets, stopping.exit_code is not None, data.kept)

    def _read(self, taken: StepsTaken) -> None:
        """Wait for the pending step, if there is one, and read its numbers."""
        if (pending := taken.pending) is None:
            return
        self._group.wait(pending.done, lambda: taken.stopping.exit_code is not None)
        try:
            taken.numbers = pending.read()
        except DivergedError as error:
            windows = self._batches.windows_of(pending.step)
            raise DivergedError(
                "train.diverged_windows", error_what=error.what, why=error.why, windows=windows, fix=error.fix
            ) from error
        taken.pending = None
        self._log.add(taken.numbers)
