"""Chooses the kept windows of each step, as a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aegis.data.order import Order
from aegis.training.batch import MicroBatch

_STREAM = 0x6B656570
"""Makes the order of kept windows differ from that of the data under the same seed."""


@dataclass(frozen=True)
class KeptShare:
    """One process's kept text of a step.

    Attributes:
        batches: one per kept pass of this process.
        targets: kept tokens that the step's loss counts, in all processes.
    """

    batches: Sequence[MicroBatch] = ()
    targets: int = 0


NOTHING_KEPT = KeptShare()


@dataclass(frozen=True)
class KeepSchedule:
    """One kept pass beside every `every`-th micro-batch, counted over all steps and processes from 0.

    Attributes:
        windows: number of kept windows; they are used in endless epochs.
        every: micro-batches of the data per kept pass.
        micro_batches: micro-batches of the data per step, in all processes.
        batch_size: windows per pass.
        seed: the training's seed.
    """

    windows: int
    every: int
    micro_batches: int
    batch_size: int
    seed: int

    def passes(self, step: int) -> list[list[int]]:
        """Return the windows of each kept pass of a step, in all processes; many steps have none."""
        order = Order(self.windows, self.seed ^ _STREAM)
        first = step * self.micro_batches
        due = range(first + -first % self.every, first + self.micro_batches, self.every)
        return [order.indices(number // self.every, self.batch_size) for number in due]
