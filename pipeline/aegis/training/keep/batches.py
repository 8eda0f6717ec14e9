"""Chooses and makes each step's batches of kept text, as a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from aegis.config.train_settings import TrainConfig
from aegis.data.order import Order
from aegis.data.packing import IGNORED, Windows
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.distributed.group import ProcessGroup

_STREAM = 0x6B656570
"""Makes the order of kept windows differ from that of the data under the same seed."""


@dataclass(frozen=True)
class KeptText:
    """Kept windows to train on, and the base's final hidden states for them.

    Attributes:
        states: (windows, max_length, hidden_size) in the dtype that training computes in, in the host's memory.
    """

    windows: Windows
    states: Tensor


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


class KeptBatches:
    """Makes each step's kept batches for one process.

    Args:
        shape: the shape of every batch.
        pinned, embed: see `MicroBatch.make`.
    """

    def __init__(
        self,
        text: KeptText,
        config: TrainConfig,
        group: ProcessGroup,
        shape: BatchShape,
        *,
        pinned: bool = False,
        embed: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._text, self._group, self._shape = text, group, shape
        self._pinned, self._embed = pinned, embed
        # all processes must gather the layers of a sharded base at the same time, so all run the same number of passes
        self._in_step = config.shard_base
        self._schedule = KeepSchedule(
            len(text.windows),
            config.keep_every,
            config.gradient_accumulation_steps * group.world_size,
            config.batch_size,
            config.seed,
        )

    def of_step(self, step: int) -> KeptShare:
        """Return this process's share of a step."""
        passes = self._schedule.passes(step)
        ours = [self._batch(chosen) for chosen in passes[self._group.rank :: self._group.world_size]]
        if self._in_step and len(ours) < -(-len(passes) // self._group.world_size):
            ours.append(self._batch(passes[0], counted=False))
        targets = sum(int(self._text.windows.trained_per_window[chosen].sum()) for chosen in passes)
        return KeptShare(ours, targets)

    def example(self) -> MicroBatch:
        """Return a batch with the shape of all others."""
        return self._batch(self._schedule.passes(0)[0])

    def _batch(self, chosen: Sequence[int], *, counted: bool = True) -> MicroBatch:
        batch = self._text.windows.batch(chosen)
        if not counted:
            batch.labels[:] = IGNORED
        states = self._text.states[list(chosen)]
        return MicroBatch.make(batch, self._shape, pinned=self._pinned, embed=self._embed, base_states=states)
