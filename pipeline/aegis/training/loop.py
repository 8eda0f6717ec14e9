"""The training loop: steps in order, what is logged, when it is saved, how it ends.

Plain torch, no Trainer: data, dropout and α of step k are pure functions of the seed and k, so a checkpoint holds
parameters and moments and nothing else, and a resumed run is the undisturbed run to the bit (on one device).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config import TrainConfig
from aegis.data.order import Order
from aegis.data.packing import Windows
from aegis.errors import DivergedError, IntegrityError, Interrupted
from aegis.soul.gate import phase
from aegis.soul.rotation import ORTHOGONALITY_BOUND, determinant_sign, orthogonality_defect
from aegis.training import memory
from aegis.training.checkpoint import Trainee
from aegis.training.signals import deferred_stop
from aegis.training.step import DeviceBatch, StepNumbers, Stepper, summed_loss

_EVALUATED_WINDOWS = 64
"""Held-out windows looked at: enough for two digits of the loss, little beside the steps between two looks."""


@dataclass(frozen=True)
class LoopOutcome:
    """Where the loop stood when it ended, and how fast it went there."""

    step: int
    loss: float | None
    heldout_loss: float | None
    tokens_per_second: float | None


class Loop:
    """Runs `config.max_steps` optimizer steps over `windows` from wherever `trainee` stands.

    Args:
        heldout: windows that are never trained on, or None.
        save: called with the step after which a checkpoint is due; None to keep nothing.
        metrics: file that gets a JSON row each logging step, or None.
    """

    def __init__(
        self,
        trainee: Trainee,
        config: TrainConfig,
        windows: Windows,
        heldout: Windows | None,
        *,
        save: Callable[[int], object] | None = None,
        metrics: Path | None = None,
    ) -> None:
        self.trainee = trainee
        self.config = config
        self.windows = windows
        self.heldout = heldout
        self.device = trainee.soul.skew.device
        self._save = save
        self._metrics = metrics
        self._order = Order(len(windows), config.seed)
        self._stepper = Stepper(trainee, config)

    def run(self, start: int, stop: int) -> LoopOutcome:
        """Take steps [start, stop); none if a run was killed between its last step and its publication.

        Raises:
            Interrupted: after a signal, once the step is finished and saved.
            DivergedError: naming the windows of the step.
            IntegrityError: R left SO(n), or the soul is not in the graph.
        """
        config = self.config
        if start >= stop:
            return LoopOutcome(stop, None, self.evaluate(self.heldout) if self.heldout else None, None)
        self.trainee.model.train()
        loss = heldout = None
        tokens = tokens_since = 0
        began = since = time.perf_counter()
        with (
            _generators_kept(),
            deferred_stop() as stopping,
            progress.task("training", stop - start, "step") as bar,
        ):
            for step in range(start, stop):
                numbers = self._take(step)
                tokens += config.batch_size * config.gradient_accumulation_steps * config.max_length
                loss = numbers.task_loss
                done = step + 1
                bar.note(f"loss {loss:.3f}  α {self.trainee.soul.alpha.item():+.3f}")
                bar.advance()
                last = done == stop
                due = done % config.save_steps == 0 or last or stopping.exit_code is not None
                if due and self.heldout is not None:
                    heldout = self.evaluate(self.heldout)
                if due or done % config.logging_steps == 0 or done == 1:
                    now = time.perf_counter()
                    self._log(done, numbers, heldout if due else None, (tokens - tokens_since) / (now - since))
                    since, tokens_since = now, tokens
                if due and self._save is not None:
                    self._save(done)
                    since = time.perf_counter()
                if stopping.exit_code is not None:
                    saved = "; it is saved" if self._save is not None else ""
                    raise Interrupted(f"stopped after step {done} of {stop}{saved}", exit_code=stopping.exit_code)
        return LoopOutcome(stop, loss, heldout, tokens / (time.perf_counter() - began))

    @torch.no_grad()
    def evaluate(self, windows: Windows) -> float:
        """Mean cross-entropy in nats a trained token, without dropout, over the first windows."""
        self.trainee.model.eval()
        total, count = 0.0, 0
        evaluated = min(len(windows), _EVALUATED_WINDOWS)
        for start in range(0, evaluated, self.config.batch_size):
            indices = range(start, min(start + self.config.batch_size, evaluated))
            batch = DeviceBatch.make(windows.batch(indices), self.device)
            total += summed_loss(self.trainee, batch).item()
            count += batch.targets.numel()
        self.trainee.model.train()
        return total / max(1, count)

    def _take(self, step: int) -> StepNumbers:
        size = self.config.batch_size
        chosen = self._order.indices(step, size * self.config.gradient_accumulation_steps)
        batches = [
            DeviceBatch.make(self.windows.batch(chosen[i : i + size]), self.device) for i in range(0, len(chosen), size)
        ]
        try:
            return self._stepper.take(step, batches)
        except DivergedError as error:
            raise DivergedError(
                error.what, why=f"{error.why}\nwindows of this step: {chosen}", fix=error.fix
            ) from error

    def _log(self, done: int, numbers: StepNumbers, heldout: float | None, tokens_per_second: float) -> None:
        soul = self.trainee.soul
        with torch.no_grad():
            rotation = soul.rotation()
            # in float64: in float32 the product's own rounding reaches the bound at a dense 3072 × 3072
            defect = orthogonality_defect(rotation.double()).abs().max().item()
            det = determinant_sign(rotation).min().item()
        alpha = soul.alpha.item()
        row: dict[str, Any] = {
            "step": done,
            "loss": numbers.task_loss + self.config.orthogonality_weight * numbers.orthogonality_loss,
            "task_loss": numbers.task_loss,
            "heldout_loss": heldout,
            "alpha": alpha,
            "gate": torch.sigmoid(soul.alpha.detach()).item(),
            "phase": phase(alpha, self.config.alpha_target).name.lower(),
            "orthogonality_error": defect,
            "det": det,
            "grad_norm": numbers.grad_norm if math.isfinite(numbers.grad_norm) else None,
            "learning_rate": self.trainee.optimizer.param_groups[0]["lr"],
            "skipped": numbers.skipped,
            "tokens_per_second": round(tokens_per_second, 1),
            "peak_bytes": memory.peak_bytes(self.device),
        }
        progress.metrics(row)
        if self._metrics is not None:
            with self._metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        if not defect <= ORTHOGONALITY_BOUND or det != 1:
            raise IntegrityError(
                f"the soul's R left SO(n) at step {done}: |RᵀR − I| {defect:.2g}, det {det:+.0f}",
                why="its parametrization cannot do that in float32; something changed its dtype or its tensors",
            )


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the rows after `step`, which a resumed run will write again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a row torn by a crash
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Give the caller's random generators back as they were: a notebook's own draws are none of our business."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        yield
