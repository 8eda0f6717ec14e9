"""What becomes of each tensor of a base when an adapter and a soul are merged into it.

The arithmetic of `aegis merge`, and of `aegis verify`, which does the head over again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aegis.errors import IntegrityError
from aegis.model.adapter import Adapter
from aegis.model.base import Base
from aegis.model.shards import HEAD, TensorEntry
from aegis.soul.file import SoulRecord
from aegis.soul.fold import fold_head

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SLAB_BYTES = 16 << 20
"""Of the base's tensors read and changed at a time."""


@dataclass(frozen=True)
class MergePlan:
    """What becomes of every tensor, decided on headers alone."""

    base: Base
    adapter: Adapter
    soul: SoulRecord
    dtype: torch.dtype
    head: TensorEntry
    untied: bool

    @classmethod
    def make(cls, base: Base, adapter: Adapter, soul: SoulRecord, dtype: torch.dtype) -> MergePlan:
        entries = base.shards.entries
        head = entries.get(HEAD)
        untied = head is None
        if head is None:
            if not base.tied:
                raise IntegrityError(f"{base.folder} has no {HEAD}, and its config does not tie it to the embeddings")
            embeddings = [entry for name, entry in entries.items() if name.endswith("embed_tokens.weight")]
            if len(embeddings) != 1:
                raise IntegrityError(f"{base.folder}: the embeddings its LM head is tied to cannot be found")
            head = embeddings[0]
        if head.shape[-1] != soul.hidden_size:
            raise IntegrityError(
                f"the soul is {soul.hidden_size} wide and the base's LM head {head.shape[-1]}",
                why="it is another base's soul",
            )
        misfits = []
        for name, update in adapter.updates.items():
            target = head if name == HEAD else entries.get(name)
            shape = (update.b.shape[0], update.a.shape[1])
            if target is None:
                misfits.append(f"{name}: not in the base")
            elif target.shape != shape:
                misfits.append(f"{name}: adapter {shape}, base {target.shape}")
        if misfits:
            more = f"\n… and {len(misfits) - 5} more" if len(misfits) > 5 else ""
            raise IntegrityError("the adapter does not fit the base", why="\n".join(misfits[:5]) + more)
        return cls(base, adapter, soul, dtype, head, untied)

    def outputs(self, file: Path) -> Iterator[tuple[str, TensorEntry]]:
        """(name to write, tensor to make it from) of one shard, in the order of the base's bytes."""
        for entry in self.base.shards.in_file(file):
            yield entry.name, entry
        if self.untied and file == self.head.file:
            yield HEAD, self.head

    def out_dtype(self, entry: TensorEntry) -> torch.dtype:
        return self.dtype if entry.dtype.is_floating_point else entry.dtype

    @property
    def tensors(self) -> int:
        return len(self.base.shards.entries) + self.untied

    @property
    def out_bytes(self) -> int:
        sizes = (
            math.prod(entry.shape) * self.out_dtype(entry).itemsize
            for file in self.base.shards.files
            for _, entry in self.outputs(file)
        )
        return sum(sizes)

    def rows(self, name: str, entry: TensorEntry, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of tensor `name` as they leave: updated, folded, cast once.

        Raises:
            IntegrityError: a value is not finite, or does not fit the dtype.
        """
        rows = entry.read(start, stop)
        if not rows.is_floating_point():
            return rows
        update = self.adapter.updates.get(name)
        if update is not None:
            rows = rows.float().add_(update.delta(start, stop))
        if name == HEAD:
            rows = fold_head(rows, self.soul.rotation, self.soul.gate)
        cast = rows.to(self.dtype)
        # the extremes are NaN if any value is, and one pass is five times faster than isfinite on every value
        if cast.numel() and not all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(cast)).tolist()):
            if torch.isfinite(rows).all():
                raise IntegrityError(
                    f"{name} does not fit {self.dtype}: its largest value is {rows.abs().max().item():.4g}",
                    fix="merge with --dtype bfloat16, which has float32's range",
                )
            raise IntegrityError(f"{name} holds NaN or Inf", why="in the base itself, or after the adapter was added")
        return cast
