"""What the training loop has come to: the steps taken so far, and the outcome when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis import progress
from aegis.training.step_metrics import PendingStep, StepMetrics
from aegis.training.stop import StopRequest
from aegis.training.throughput import Throughput


@dataclass(frozen=True)
class LoopOutcome:
    """Where the loop stood when it ended, and how fast it went there.

    Attributes:
        keep_kl: as the last row of metrics.jsonl has it.
    """

    step: int
    loss: float | None
    heldout_loss: float | None
    keep_kl: float | None
    tokens_per_second: float | None
    start_seconds: float = 0.0


@dataclass
class StepsTaken:
    """The steps of one `run` so far.

    Attributes:
        numbers: of the newest step that was read.
        heldout: the newest held-out loss.
        pending: the step that the device works on, not read yet.
    """

    start: int
    stop: int
    stopping: StopRequest
    watch: progress.Watch
    throughput: Throughput = field(default_factory=Throughput)
    numbers: StepMetrics | None = None
    heldout: float | None = None
    pending: PendingStep | None = None
