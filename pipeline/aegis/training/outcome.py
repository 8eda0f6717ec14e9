"""The state of a training loop that runs, and its outcome when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis import progress
from aegis.training.step_metrics import PendingStep, StepMetrics
from aegis.training.stop import StopRequest
from aegis.training.throughput import Throughput


@dataclass(frozen=True)
class LoopOutcome:
    """The step, losses and speed of a loop at its end.

    Attributes:
        loss, heldout_loss: nats per trained token.
        keep_kl: the value of the last step of this loop with kept text; None without any.
        start_seconds: time of the first steps, which compile and record.
    """

    step: int
    loss: float | None
    heldout_loss: float | None
    keep_kl: float | None
    tokens_per_second: float | None
    start_seconds: float = 0.0


@dataclass
class StepsTaken:
    """The progress of one `Loop.run`.

    Attributes:
        numbers: the numbers of the latest step that was read.
        heldout: the latest held-out loss.
        pending: the step that the device works on; its numbers are not read yet.
    """

    start: int
    stop: int
    stopping: StopRequest
    watch: progress.Watch
    throughput: Throughput = field(default_factory=Throughput)
    numbers: StepMetrics | None = None
    heldout: float | None = None
    pending: PendingStep | None = None
