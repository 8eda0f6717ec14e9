"""Writes the rows of metrics.jsonl: a step's numbers, the latest keep loss, and measures of R."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError
from aegis.runs.lock import check_held
from aegis.soul.angles import quantiles_in_degrees
from aegis.soul.gate import gate, phase
from aegis.soul.module import Soul
from aegis.soul.rotation import ORTHOGONALITY_BOUND, determinant_sign, orthogonality_defect
from aegis.training.execution import allocator
from aegis.training.learning_rate import learning_rate_factor
from aegis.training.step_metrics import StepMetrics
from aegis.training.tracking import Report

_ROTATION_KEYS = "orthogonality_error", "det", "turned_degrees"
"""Keys of a row that `_measure_rotation` fills."""


class MetricsLog:
    """Writes one row per logging step to the reporter, to a file and to a tracker.

    Args:
        file: gets the row, the planned steps and the time as a line of JSON, or None.
        report: the tracker's function, or None.
        epochs_per_step: passes over the data per step.

    Attributes:
        keep_kl: the value of the last step with kept text that was added; None without any.
    """

    def __init__(
        self, config: TrainConfig, soul: Soul, file: Path | None, report: Report | None, epochs_per_step: float
    ) -> None:
        self._config, self._soul, self._file, self._report = config, soul, file, report
        self._epochs_per_step = epochs_per_step
        self.keep_kl: float | None = None
        self._kept: tuple[float, float] | None = None  # keep_kl and its weight

    def add(self, numbers: StepMetrics) -> None:
        """Add a step to the next row; every step is added once, in order."""
        if numbers.keep_kl is not None and not numbers.skipped:
            self._kept, self.keep_kl = (numbers.keep_kl, numbers.keep_weight), numbers.keep_kl

    def write(self, numbers: StepMetrics, due: bool, heldout: float | None, tokens_per_second: float) -> None:
        """Write the row of a step that was added; its `keep_kl` is that of the last step with kept text since a row.

        It is no mean over these steps: an interruption adds a row, and the rows after it would have other means.

        Args:
            due: a checkpoint is due, so a dense rotation is measured too.

        Raises:
            IntegrityError: R is not a rotation any more.
        """
        config, soul, done = self._config, self._soul, numbers.step + 1
        # measuring a dense rotation takes as long as many steps, so it is done with checkpoints only
        measured = _measure_rotation(soul) if due or soul.kind != "dense" else dict.fromkeys(_ROTATION_KEYS)
        alpha, factor = numbers.alpha, learning_rate_factor(config)
        keep_kl, keep_weight = self._kept or (None, 0.0)
        self._kept = None
        loss = numbers.task_loss + config.orthogonality_weight * numbers.orthogonality_loss
        row: dict[str, Any] = {
            "step": done,
            "epoch": round(done * self._epochs_per_step, 4),
            "loss": loss + keep_weight * (keep_kl or 0.0),
            "task_loss": numbers.task_loss,
            "heldout_loss": heldout,
            "keep_kl": keep_kl,
            "alpha": alpha,
            "gate": gate(alpha),
            "phase": phase(alpha, config.alpha_target).value,
            **measured,
            "grad_norm": numbers.grad_norm if math.isfinite(numbers.grad_norm) else None,
            "learning_rate": config.learning_rate * factor(numbers.step),
            "skipped": numbers.skipped,
            "tokens_per_second": round(tokens_per_second, 1),
            "peak_bytes": allocator.peak_bytes(soul.skew.device),
        }
        progress.metrics(row)
        if self._file is not None:
            check_held(self._file)
            # for a reader of the file, who knows neither the settings nor when it grew
            known = {"planned_steps": config.max_steps, "time": round(time.time(), 1)}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | known) + "\n")
        if self._report is not None:
            self._report(row)
        defect = measured["orthogonality_error"]
        if defect is not None and not defect <= ORTHOGONALITY_BOUND:
            raise IntegrityError("train.left_so", done=done, defect=defect)
        if measured["det"] not in (None, 1):
            raise IntegrityError("train.reflection", done=done)


@torch.no_grad()
def _measure_rotation(soul: Soul) -> dict[str, Any]:
    """Measure R's orthogonality, determinant and angles; this is too slow for every step."""
    rotation = soul.rotation()
    # in float64: at a dense 3072 × 3072 the product's own rounding in float32 reaches the bound
    defect = orthogonality_defect(rotation.double()).abs().max().item()
    det = determinant_sign(rotation).min().item()
    return dict(zip(_ROTATION_KEYS, (defect, det, quantiles_in_degrees(soul.turned_angles())), strict=True))
