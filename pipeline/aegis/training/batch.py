"""Makes the inputs of a forward pass: windows as tensors whose shapes are the same in every step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from aegis.data.packing import IGNORED, Batch, Windows
from aegis.training.execution.pinned_memory import pinning


@dataclass(frozen=True)
class BatchShape:
    """The sizes that no batch of a data set exceeds, so that one captured graph serves all of them.

    Attributes:
        rows: maximum number of trained tokens per batch, up to a multiple of 8, which divides into equal chunks.
        documents: maximum number of documents per batch, with one per window for its padding; None if every window
            holds one document.
        longest: tokens of the longest document.
    """

    rows: int
    documents: int | None
    longest: int

    @classmethod
    def of(cls, windows: Windows, batch_size: int) -> BatchShape:
        """Measure a data set without reading its tokens."""
        pieces = np.diff(windows.first_piece)
        lengths = np.diff(windows.first_token)
        used = np.diff(windows.first_token[windows.first_piece])
        padding = int((windows.max_length - used).max(initial=0))
        return cls(
            rows=max(1, math.ceil(batch_size * int(windows.trained_per_window.max(initial=0)) / 8)) * 8,
            # padding behind a single document needs no edge: attention is causal
            documents=None if pieces.max(initial=1) <= 1 else batch_size * (int(pieces.max()) + (padding > 0)),
            longest=max(int(lengths.max(initial=1)), padding),
        )

    def and_of(self, other: BatchShape) -> BatchShape:
        """Return the smallest shape that serves both."""
        documents = None
        if self.documents is not None or other.documents is not None:
            documents = max(self.documents or 0, other.documents or 0)
        return BatchShape(max(self.rows, other.rows), documents, max(self.longest, other.longest))


@dataclass(frozen=True)
class MicroBatch:
    """The windows of one forward pass, and the positions that are trained.

    Attributes:
        input_ids, position_ids: (windows, max_length) int64.
        rows: (n,) int64, positions in the flattened windows whose next token is trained; filled up with the last
            position.
        targets: (n,) int64, the tokens after `rows`; filled up with IGNORED.
        edges: (documents + 1,) int32, starts of the documents in the flattened windows; filled up with the end of the
            last one. None if every window is one document.
        embedded: (windows, max_length, hidden_size), the embeddings of `input_ids` if the host looks them up, else
            None.
        base_hidden: (n, hidden_size), the base's final hidden states at `rows`, for kept text; else None.
        longest: maximum number of tokens per document.
        trained: number of targets that are not IGNORED.
    """

    input_ids: Tensor
    position_ids: Tensor
    rows: Tensor
    targets: Tensor
    edges: Tensor | None
    embedded: Tensor | None
    longest: int
    trained: int
    base_hidden: Tensor | None = None

    @classmethod
    def make(
        cls,
        batch: Batch,
        shape: BatchShape | None = None,
        *,
        pinned: bool = False,
        embed: Callable[[Tensor], Tensor] | None = None,
        base_states: Tensor | None = None,
    ) -> MicroBatch:
        """Make a micro-batch on the CPU.

        Args:
            shape: the sizes to fill up to; None takes the batch's own sizes.
            pinned: put it in page-locked memory, from which copies run in the background.
            embed: the input embeddings if they are in the host's memory.
            base_states: (windows, max_length, hidden_size), the base's final hidden states of kept text.

        Raises:
            EnvironmentFault: there is not enough memory that can be pinned.
        """
        following = np.full_like(batch.labels, IGNORED)
        following[:, :-1] = batch.labels[:, 1:]
        flat = following.ravel()
        rows = np.flatnonzero(flat != IGNORED)
        targets = flat[rows]
        count = len(rows)
        starts = np.flatnonzero(batch.position_ids.ravel() == 0)
        single = shape.documents is None if shape is not None else len(starts) <= len(batch.input_ids)
        edges = None
        if shape is not None:
            # a window's last position is never trained, so it can take the zero gradient of any number of rows
            rows, targets = _filled(rows, shape.rows, flat.size - 1), _filled(targets, shape.rows, IGNORED)
        if not single:
            documents = shape.documents if shape is not None and shape.documents is not None else len(starts)
            edges = torch.from_numpy(_filled(starts, documents + 1, flat.size).astype(np.int32))
        made = cls(
            torch.from_numpy(batch.input_ids),
            torch.from_numpy(batch.position_ids),
            torch.from_numpy(rows),
            torch.from_numpy(targets),
            edges,
            None if embed is None else embed(torch.from_numpy(batch.input_ids)).detach(),
            shape.longest if shape is not None else batch.input_ids.shape[1],
            count,
            None if base_states is None else base_states.flatten(0, 1)[torch.from_numpy(rows)],
        )
        if not pinned:
            return made
        with pinning():
            return made._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> MicroBatch:
        """Copy to `device` without waiting for the copy."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def copy_into(self, slot: MicroBatch) -> None:
        """Copy into the tensors of `slot`, which has the same shape, without waiting for the copy."""
        for name in _TENSORS:
            target, source = getattr(slot, name), getattr(self, name)
            if source is not None:
                target.copy_(source, non_blocking=True)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name in _TENSORS:
            if values[name] is not None:
                values[name] = change(values[name])
        return MicroBatch(**values)


_TENSORS = ("input_ids", "position_ids", "rows", "targets", "edges", "embedded", "base_hidden")


def _filled(values: np.ndarray, count: int, filler: int) -> np.ndarray:
    filled = np.full(count, filler, dtype=np.int64)
    filled[: len(values)] = values
    return filled
