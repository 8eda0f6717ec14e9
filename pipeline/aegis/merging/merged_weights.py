"""Plans and computes the merge of an adapter and a soul into the tensors of a base.

`aegis merge` uses this arithmetic, and `aegis verify` computes the head again with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from aegis.errors import IntegrityError
from aegis.merging.base_weights import RoundTrip
from aegis.merging.ordered_pool import Scratch
from aegis.messages import Bilingual, bilingual
from aegis.model.adapter import Adapter
from aegis.model.base import Base
from aegis.model.families import PROVEN
from aegis.model.shards import HEAD, TensorEntry
from aegis.soul.file import SoulRecord
from aegis.soul.fold import fold_head, scale_norm

Source = Callable[[int, int], Tensor]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
SLAB_BYTES = 4 << 20
"""Bytes of a base tensor per slab."""
_PIECE_VALUES = 1 << 18


@dataclass(frozen=True)
class MergePlan:
    """What the merge does with every tensor, decided from headers alone.

    Attributes:
        head: the source of the LM head: itself, or the embeddings if it is tied to them.
        untied: whether the head was tied, and becomes a separate tensor.
        norm: the tensors of the final norm that take the soul's counter-scale, with the offset of each; if there are
            none, the head takes it.
        round_trip: the NF4 round trip of the base's weights before the merge; None merges into the original weights.
    """

    base: Base
    adapter: Adapter
    soul: SoulRecord
    dtype: torch.dtype
    head: TensorEntry
    untied: bool
    norm: Mapping[str, float]
    round_trip: RoundTrip | None = None

    @classmethod
    def make(
        cls, base: Base, adapter: Adapter, soul: SoulRecord, dtype: torch.dtype, round_trip: RoundTrip | None = None
    ) -> MergePlan:
        entries, head = base.shards.entries, head_entry(base)
        if head.shape[-1] != soul.hidden_size:
            raise IntegrityError("merging.other_width", hidden_size=soul.hidden_size, head_shape=head.shape[-1])
        misfits: list[Bilingual] = []
        for name, update in adapter.updates.items():
            target = head if name == HEAD else entries.get(name)
            shape = (update.b.shape[0], update.a.shape[1])
            if target is None:
                misfits.append(bilingual("merging.not_in_base", name=name))
            elif target.shape != shape:
                misfits.append(bilingual("merging.other_shape", name=name, found=shape, wanted=target.shape))
        if misfits:
            more = [bilingual("merging.more", count=len(misfits) - 5)] if len(misfits) > 5 else []
            raise IntegrityError("merging.other_adapter", misfits=Bilingual.joined("\n", [*misfits[:5], *more]))
        norm = _norm_offsets(base) if soul.counter_scale else {}
        return cls(base, adapter, soul, dtype, head, head.name != HEAD, norm, round_trip)

    @property
    def scaled(self) -> Literal["norm", "head", ""]:
        """The module that takes the soul's counter-scale, "norm" or "head"; "" for a soul without one."""
        return counter_scaled(self.base, self.soul.counter_scale)

    def outputs(self, file: Path) -> Iterator[tuple[str, TensorEntry]]:
        """Yield (name to write, source tensor) for one shard, in the order of the base's bytes."""
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

    def slabs(self, name: str, entry: TensorEntry) -> Iterator[tuple[int, int, Tensor]]:
        """Yield start, stop and rows [start, stop) of the merged tensor `name`, made from `entry`, slab by slab.

        Raises:
            IntegrityError: a value is not finite, or does not fit the dtype.
        """
        source: Source = entry.read
        scratch = Scratch()
        if self.round_trip is not None and name in self.round_trip.weights:
            weight = self.round_trip.begin(entry)
            for start, stop in entry.slabs(SLAB_BYTES):
                weight.quantize(start, entry.read(start, stop), scratch)
            weight.seal()
            source = weight.rows
        for start, stop in entry.slabs(SLAB_BYTES):
            out = torch.empty(entry.shape_of(start, stop), dtype=self.out_dtype(entry))
            self.change(name, start, stop, source, out, scratch)
            yield start, stop, out

    def change(self, name: str, start: int, stop: int, source: Source, out: Tensor, scratch: Scratch) -> None:
        """Compute rows [start, stop) of the merged tensor `name`.

        Args:
            source: returns rows [first, last) of the weight that is merged into, within [start, stop).
            out: the tensor to fill, in the dtype of the merged tensor.
            scratch: memory for intermediate values.

        Raises:
            IntegrityError: a value is not finite, or does not fit the dtype.
        """
        untouched = name != HEAD and name not in self.adapter.updates and name not in self.norm
        # few rows stay in the processor's cache; for the head, a dense soul's product is faster with many rows
        parts = 1 if name == HEAD else -(-out.numel() // _PIECE_VALUES)
        step = -(-(stop - start) // parts)
        for first in range(start, stop, step):
            last = min(first + step, stop)
            rows, merged = source(first, last), out[first - start : last - start]
            if untouched and (rows.dtype == out.dtype or not rows.is_floating_point()):
                merged.copy_(rows)
            else:
                # torch casts bfloat16 to float16 value by value; through float32, which can hold both, it is fast
                merged.copy_(self._wide(name, first, rows, scratch))
        if not out.is_floating_point() or _finite(out):
            return
        largest = float(self._wide(name, start, source(start, stop), scratch).abs().max())
        if math.isfinite(largest):
            raise IntegrityError("merging.out_of_range", name=name, dtype=self.dtype, largest=largest)
        raise IntegrityError("merging.holds_nan_inf", name=name)

    def _wide(self, name: str, start: int, rows: Tensor, scratch: Scratch) -> Tensor:
        """Return the rows in float32, with the adapter's update, the fold and the counter-scale."""
        wide = scratch.tensor("wide", tuple(rows.shape), torch.float32).copy_(rows)
        if update := self.adapter.updates.get(name):
            delta = scratch.tensor("delta", tuple(rows.shape), torch.float32)
            wide.add_(update.delta(start, start + len(rows), into=delta))
        if name in self.norm:
            return scale_norm(wide, self.soul.scale, self.norm[name])
        if name != HEAD:
            return wide
        folded = fold_head(wide, self.soul.rotation, self.soul.gate)
        return folded.mul_(self.soul.scale) if self.scaled == "head" else folded


def head_entry(base: Base) -> TensorEntry:
    """The tensor that the LM head is made of: itself, or the embeddings that it is tied to.

    Raises:
        IntegrityError: the base has neither.
    """
    entries = base.shards.entries
    if HEAD in entries:
        return entries[HEAD]
    if not base.tied:
        raise IntegrityError("merging.no_head", base_folder=base.folder, head=HEAD)
    embeddings = [entry for name, entry in entries.items() if name.endswith("embed_tokens.weight")]
    if len(embeddings) != 1:
        raise IntegrityError("merging.no_embeddings", base_folder=base.folder)
    return embeddings[0]


def merged_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the merged folder's tensors, by name: the LM head is always a tensor of its own."""
    return {name: entry.shape for name, entry in base.shards.entries.items()} | {HEAD: head_entry(base).shape}


def counter_scaled(base: Base, counter_scale: bool) -> Literal["norm", "head", ""]:
    """Return the module that takes a soul's counter-scale: "norm", "head", or "" if there is none."""
    if not counter_scale:
        return ""
    return "norm" if _norm_offsets(base) else "head"


def _norm_offsets(base: Base) -> dict[str, float]:
    """Return the tensors of a proven family's final norm with their offsets; for other families the norm is unknown."""
    family = PROVEN.get(str(base.config.get("model_type")))
    weight = f"{family.norm}.weight" if family else ""
    if family is None or weight not in base.shards.entries:
        return {}
    bias = f"{family.norm}.bias"
    return {weight: family.norm_offset} | ({bias: 0.0} if bias in base.shards.entries else {})


def _finite(values: Tensor) -> bool:
    # minimum and maximum are NaN if any value is; one pass is five times faster than isfinite on every value
    return not values.numel() or all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(values)).tolist())
