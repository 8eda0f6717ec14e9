"""Makes the micro-batches of each step: this process's share of the data and of the kept text, in the host's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from aegis.config.train_settings import TrainConfig
from aegis.data.epochs import windows_per_step
from aegis.data.order import Order
from aegis.data.packing import IGNORED, Windows
from aegis.training.batch import BatchShape, MicroBatch
from aegis.training.distributed.group import ProcessGroup
from aegis.training.execution.apply_options import host_embeddings
from aegis.training.keep.batches import NOTHING_KEPT, KeptBatches, KeptShare, KeptText
from aegis.training.state import TrainState


@dataclass(frozen=True)
class StepData:
    """One process's share of a step.

    Attributes:
        targets: trained tokens of the step in all processes.
    """

    step: int
    batches: list[MicroBatch]
    targets: int
    kept: KeptShare


class StepBatches:
    """Makes the batches of a training, all of one shape.

    Args:
        heldout: windows that are evaluated, or None.
        kept: kept text with the base's states, or None.
        group: the processes that share each step.

    Attributes:
        windows_per_step: windows that a step of all processes takes.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        windows: Windows,
        heldout: Windows | None,
        kept: KeptText | None,
        group: ProcessGroup,
    ) -> None:
        self.windows_per_step = windows_per_step(config, group.world_size)
        self._config, self._windows, self._group = config, windows, group
        self._order = Order(len(windows), config.seed)
        self._pinned = state.soul.skew.device.type == "cuda"
        self._embed = host_embeddings(state.model) if self._pinned else None
        self._shape = BatchShape.of(windows, config.batch_size)
        if heldout is not None:
            self._shape = self._shape.and_of(BatchShape.of(heldout, config.batch_size))
        self._kept = None if kept is None else self._kept_batches(kept)
        self._ahead: StepData | None = None

    def of_step(self, step: int) -> StepData:
        """Return a step's share, which `prepare` may have made already."""
        return self._ahead if self._ahead is not None and self._ahead.step == step else self._made(step)

    def prepare(self, step: int) -> None:
        """Make a step's share, so that `of_step` has it at hand."""
        self._ahead = self._made(step)

    def forget(self) -> None:
        """Make the next step's share anew: the embeddings in the host's memory were replaced."""
        self._ahead = None

    def windows_of(self, step: int) -> list[int]:
        """Return the numbers of a step's windows, in all processes."""
        return self._order.indices(step, self.windows_per_step)

    def batch(self, windows: Windows, indices: Sequence[int]) -> MicroBatch:
        """Make a batch of the given windows; missing ones are filled up with windows that count for nothing."""
        # the last batch of an evaluation may have fewer windows, or none; it keeps its shape
        full = [*indices, *[0] * (self._config.batch_size - len(indices))]
        batch = windows.batch(full)
        batch.labels[len(indices) :] = IGNORED
        return MicroBatch.make(batch, self._shape, pinned=self._pinned, embed=self._embed)

    def kept_example(self) -> MicroBatch | None:
        """Return a kept batch, which has the shape of all others; None if there is no kept text."""
        return self._kept.example() if self._kept else None

    def _made(self, step: int) -> StepData:
        size, chosen = self._config.batch_size, self.windows_of(step)
        share = len(chosen) // self._group.world_size
        ours = chosen[share * self._group.rank :][:share]
        batches = [self.batch(self._windows, ours[i : i + size]) for i in range(0, share, size)]
        targets = int(self._windows.trained_per_window[chosen].sum())
        return StepData(step, batches, targets, self._kept.of_step(step) if self._kept else NOTHING_KEPT)

    def _kept_batches(self, kept: KeptText) -> KeptBatches:
        kept_shape = BatchShape.of(kept.windows, self._config.batch_size)
        # the layers are compiled once, for one shape; only the number of rows at the head differs between the passes
        both = self._shape.and_of(kept_shape)
        self._shape = replace(both, rows=self._shape.rows)
        shape = replace(both, rows=kept_shape.rows)
        return KeptBatches(kept, self._config, self._group, shape, pinned=self._pinned, embed=self._embed)
