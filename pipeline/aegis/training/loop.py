"""The training loop: steps in order, what is logged, when it is saved, how it ends.

Plain torch, no Trainer: data, dropout and α of step k are pure functions of the seed and k, so a checkpoint holds
parameters and moments and nothing else, and a resumed run is the undisturbed run to the bit where its kernels are the
same, as on a CPU (compiled for a GPU, another process may come to others: tools/README.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from aegis import progress
from aegis.config.settings import TrainConfig
from aegis.data.order import Order
from aegis.data.packing import IGNORED, Windows
from aegis.errors import DivergedError, Interrupted
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.distributed.group import SINGLE, ProcessGroup
from aegis.training.execution.cuda_graphs import own_stream
from aegis.training.execution.install import host_embeddings
from aegis.training.keep.batches import KeptBatches, KeptText
from aegis.training.keep.schedule import NOTHING_KEPT
from aegis.training.metrics_log import MetricsLog
from aegis.training.outcome import LoopOutcome, StepsTaken
from aegis.training.state import TrainState
from aegis.training.step import STARTING_STEPS, Stepper
from aegis.training.step_metrics import PendingStep
from aegis.training.stop import OTHERS_ASKED, StopRequest, deferred_stop
from aegis.training.tracking import Report

_EVALUATED_WINDOWS = 64
"""Held-out windows looked at: enough for two digits of the loss, little beside the steps between two looks."""


class Loop:
    """Runs `config.max_steps` optimizer steps over `windows` from wherever `state` stands.

    Args:
        heldout: windows that are never trained on, or None.
        kept: text on which the model keeps to its base, or None.
        save: called with the step after which a checkpoint is due; None to keep nothing.
        metrics: file that gets a JSON row each logging step, or None.
        report: gets that row as well, or None.
        group: the processes that share each step; `save` and `metrics` are for the one that writes.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        windows: Windows,
        heldout: Windows | None,
        kept: KeptText | None = None,
        *,
        save: Callable[[int], object] | None = None,
        metrics: Path | None = None,
        report: Report | None = None,
        group: ProcessGroup = SINGLE,
    ) -> None:
        self.state = state
        self.config = config
        self.windows = windows
        self.heldout = heldout
        self.device = state.soul.skew.device
        self._save = save
        self._log = MetricsLog(config, state.soul, metrics, report)
        self._group = group
        self._step_size = config.batch_size * config.gradient_accumulation_steps * group.world_size
        self._order = Order(len(windows), config.seed)
        self._shape = BatchShape.of(windows, config.batch_size)
        if heldout is not None:
            self._shape = self._shape.and_of(BatchShape.of(heldout, config.batch_size))
        self._embed = host_embeddings(state.model) if self.device.type == "cuda" else None
        self._kept = None if kept is None else self._batches_of(kept)
        self._stepper = Stepper(state, config, group, self._kept.example() if self._kept else None)

    def _batches_of(self, kept: KeptText) -> KeptBatches:
        of_kept = BatchShape.of(kept.windows, self.config.batch_size)
        # layers see one shape, compiled once for both; the rows that reach the head are each pass's own
        both = self._shape.and_of(of_kept)
        self._shape = replace(both, rows=self._shape.rows)
        shape = replace(both, rows=of_kept.rows)
        on_gpu = self.device.type == "cuda"
        return KeptBatches(kept, self.config, self._group, shape, pinned=on_gpu, embed=self._embed)

    def run(self, start: int, stop: int) -> LoopOutcome:
        """Take steps [start, stop); none if a run was killed between its last step and its publication.

        Raises:
            Interrupted: after a signal, once the step is finished and saved; in all processes after the same step.
            DivergedError: naming the windows of the step.
            IntegrityError: R left SO(n), or the soul is not in the graph.
            EnvironmentFault: another process has ended.
        """
        if start >= stop:
            return LoopOutcome(stop, None, self.evaluate(self.heldout) if self.heldout else None, None, None)
        self.state.model.train()
        with own_stream(self.device), deferred_stop() as stopping, progress.training(start, stop) as watch:
            taken = StepsTaken(start, stop, stopping, watch)
            for step in range(start, stop):
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

    def _take(self, step: int, taken: StepsTaken) -> None:
        """Launch a step; while the device works on it, the host reads the one before."""
        pending = self._launch(step, taken.stopping)
        self._read(taken)
        taken.pending = pending
        if self._group.world_size > 1:
            # a sum that a dead process keeps from ending must be found before the GPU's queue is full behind it: from
            # then on this thread would be stuck in a launch, where no signal reaches it
            self._read(taken)
        taken.throughput.add_step(self.config.max_length * self._step_size)

    def _settle(self, done: int, taken: StepsTaken) -> None:
        """Log, evaluate, save and stop, where that is due after `done` steps.

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
        if logged and taken.numbers is not None:
            self._log.write(taken.numbers, due, taken.heldout if due else None, taken.throughput.rate())
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
        """Mean cross-entropy in nats a trained token, without dropout, over the first windows.

        The processes take turns at its batches; all of them must call it, and get the same.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        size, group = self.config.batch_size, self._group
        evaluated = min(len(windows), _EVALUATED_WINDOWS)
        turns = -(-evaluated // (size * group.world_size))
        with self.state.adapters.without_dropout():
            # all take as many, the last of them perhaps at nothing: a base that is split needs them all
            for start in range(size * group.rank, turns * size * group.world_size, size * group.world_size):
                total += self._stepper.eval_loss(self._batch(windows, range(start, min(start + size, evaluated))))
        group.all_reduce(total)
        return total.item() / max(1, int(windows.trained_per_window[:evaluated].sum()))

    def _leaving(self, taken: StepsTaken) -> bool:
        """Whether this is the last step. Several processes go by a step's numbers, which all of them read alike."""
        if self._group.world_size == 1:
            return taken.stopping.exit_code is not None
        return taken.numbers is not None and taken.numbers.stop_requested

    def _launch(self, step: int, stopping: StopRequest) -> PendingStep:
        size = self.config.batch_size
        chosen = self._step_windows(step)
        share = len(chosen) // self._group.world_size
        ours = chosen[share * self._group.rank :][:share]
        batches = [self._batch(self.windows, ours[i : i + size]) for i in range(0, share, size)]
        targets = int(self.windows.trained_per_window[chosen].sum())
        kept = self._kept.of_step(step) if self._kept else NOTHING_KEPT
        return self._stepper.launch(step, batches, targets, stopping.exit_code is not None, kept)

    def _step_windows(self, step: int) -> list[int]:
        return self._order.indices(step, self._step_size)

    def _batch(self, windows: Windows, indices: Sequence[int]) -> MicroBatch:
        # the last look at the held-out windows may be at fewer than a batch, or at none; its shape stays the others'
        full = [*indices, *[0] * (self.config.batch_size - len(indices))]
        batch = windows.batch(full)
        batch.labels[len(indices) :] = IGNORED
        return MicroBatch.make(batch, self._shape, pinned=self.device.type == "cuda", embed=self._embed)

    def _read(self, taken: StepsTaken) -> None:
        """Wait for the step that is under way, if there is one, and read its numbers."""
        if (pending := taken.pending) is None:
            return
        self._group.wait(pending.done, lambda: taken.stopping.exit_code is not None)
        try:
            taken.numbers = pending.read()
        except DivergedError as error:
            windows = self._step_windows(pending.step)
            raise DivergedError(
                "train.diverged_windows", error_what=error.what, why=error.why, windows=windows, fix=error.fix
            ) from error
        taken.pending = None
        self._log.add(taken.numbers)
