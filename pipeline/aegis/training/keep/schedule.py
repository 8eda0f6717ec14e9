"""Which kept windows go through the model in which step: a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegis.data.order import Order
from aegis.training.batch import MicroBatch

_STREAM = 0x6B656570
"""Sets the order of kept windows apart from that of the data under the same seed."""


@dataclass(frozen=True)
class KeptShare:
    """One process's kept text of a step.

    Attributes:
        batches: one per kept pass of this process.
        targets: tokens that count in the step, of all processes.
    """

    batches: Sequence[MicroBatch] = ()
    targets: int = 0


NOTHING_KEPT = KeptShare()


@dataclass(frozen=True)
class KeepSchedule:
    """One kept pass beside every `every`-th micro-batch, counted over all steps and processes from 0.

    Attributes:
        windows: kept windows that are trained on, in endless epochs.
        every: micro-batches of the data per kept pass.
        micro_batches: of the data per step, in all processes.
        batch_size: windows per pass.
        seed: of the training.
    """

    windows: int
    every: int
    micro_batches: int
    batch_size: int
    seed: int

    def passes(self, step: int) -> list[list[int]]:
        """The windows of each kept pass of a step, in all processes; none in many steps."""
        order = Order(self.windows, self.seed ^ _STREAM)
        first = step * self.micro_batches
        due = range(first + -first % self.every, first + self.micro_batches, self.every)
        return [order.indices(place // self.every, self.batch_size) for place in due]
