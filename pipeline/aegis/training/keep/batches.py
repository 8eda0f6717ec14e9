"""Makes the batches of kept text for each step, with the base's hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from aegis.config.settings import TrainConfig
from aegis.data.packing import IGNORED, Windows
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.distributed.group import ProcessGroup
from aegis.training.keep.window_choice import KeepSchedule, KeptShare


@dataclass(frozen=True)
class KeptText:
    """Kept windows to train on, and the base's final hidden states for them.

    Attributes:
        states: (windows, max_length, hidden_size) in the dtype that training computes in, in the host's memory.
    """

    windows: Windows
    states: Tensor


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
