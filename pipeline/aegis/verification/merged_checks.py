"""Checks the merged weights: makes every tensor again from base, adapter and soul, and compares the bytes.

A merge computes in float32, in pieces of fixed size on one thread, so one machine always writes the same bytes. Another
processor may sum the terms of a product in another order. This can only move a value to the other side of a rounding
tie: it changes by one unit in the last place, and only if the float32 value is at the tie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from aegis import progress
from aegis.background import stop_if_asked
from aegis.errors import IntegrityError
from aegis.merging.merged_weights import MergePlan
from aegis.merging.ordered_pool import Scratch, run_in_order
from aegis.messages import bilingual, phrase
from aegis.model.shards import HEAD, ShardSet, TensorEntry, raw_bytes
from aegis.verification.run_checks import Checks

SUM_ERROR = 2.0**-20
"""Maximum difference between two orders of a float32 sum, as a fraction of the row's largest magnitude: 16 times
float32's 2⁻²⁴."""


@dataclass
class _Work:
    """One tensor to compare.

    Attributes:
        ties: number of values that were rounded to the other side of a tie.
    """

    name: str
    source: TensorEntry
    stored: TensorEntry
    ties: int = 0


def check_tensors(checks: Checks, plan: MergePlan, merged: ShardSet, *, skipped: frozenset[str] = frozenset()) -> None:
    """Check that the merged folder has exactly the tensors that the plan makes from base, adapter and soul.

    Args:
        skipped: tensors that went through NF4 on a GPU, if this machine has none.

    Raises:
        InterruptedError: `checks.stop` was set; it is looked at between two tensors.
    """
    with checks.check(bilingual("merged.tensors"), "merge") as detail:
        work = [item for item in _pairs(plan, merged) if item.name not in skipped]
        ties = 0
        with (
            progress.task(phrase("merged.comparing"), plan.out_bytes, "B") as bar,
            closing(run_in_order(work, lambda item, _scratch: _compare(plan, item))) as done,
        ):
            for item in done:
                stop_if_asked(checks.stop)
                bar.advance(item.stored.bytes)
                ties += item.ties
        detail(bilingual("merged.same_bytes", count=len(work)) if not ties else bilingual("merged.ties", count=ties))
        detail(bilingual("structure.gate", gate=plan.soul.gate, kind=plan.soul.kind))
        if skipped:
            detail(bilingual("merged.skipped", count=len(skipped)))


def _pairs(plan: MergePlan, merged: ShardSet) -> Iterator[_Work]:
    sources = {name: entry for file in plan.base.shards.files for name, entry in plan.outputs(file)}
    if odd := sorted(sources.keys() ^ merged.entries.keys()):
        lost = odd[0] in sources
        raise IntegrityError("merged.lost" if lost else "merged.extra", name=odd[0], merged=merged.folder)
    for name, source in sources.items():
        stored = merged.entries[name]
        wanted = (plan.out_dtype(source), source.shape)
        if (stored.dtype, stored.shape) != wanted:
            raise IntegrityError(
                "merged.other_kind", name=name, dtype=stored.dtype, shape=stored.shape, wanted=wanted[0], size=wanted[1]
            )
        yield _Work(name, source, stored)


def _compare(plan: MergePlan, item: _Work) -> None:
    """Compare one tensor, slab by slab.

    Raises:
        IntegrityError: it is another tensor.
    """
    scratch = Scratch()
    for start, stop, rows in plan.slabs(item.name, item.source):
        stored = item.stored.read(start, stop, into=scratch.tensor("stored", tuple(rows.shape), rows.dtype))
        if _same_bytes(rows, stored):
            continue
        # a weight that is not a sum must have the same bytes
        summed = item.name == HEAD or item.name in plan.adapter.updates
        different = int((rows != stored).sum())
        if not (summed and rows.is_floating_point() and _ties_only(_wide(plan, item, start, stop), stored)):
            raise _other(item, start, rows, stored, different)
        item.ties += different


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    # as numbers, −0.0 would equal 0.0
    return np.array_equal(np.frombuffer(raw_bytes(one), np.uint8), np.frombuffer(raw_bytes(other), np.uint8))


def _wide(plan: MergePlan, item: _Work, start: int, stop: int) -> Tensor:
    """Return the rows before the cast."""
    wide = replace(plan, dtype=torch.float32)
    return next(rows for first, last, rows in wide.slabs(item.name, item.source) if (first, last) == (start, stop))


def _ties_only(wide: Tensor, stored: Tensor) -> bool:
    """Whether `stored` is a correct rounding of values that differ from `wide` by no more than the order of sums."""
    found = stored.float()
    if not torch.isfinite(found).all():
        return False
    above, below = (
        torch.nextafter(stored, torch.full_like(stored, limit)).float() for limit in (torch.inf, -torch.inf)
    )
    slack = SUM_ERROR * wide.abs().amax(-1, keepdim=True)
    return bool(((wide <= (found + above) / 2 + slack) & (wide >= (found + below) / 2 - slack)).all())


def _other(item: _Work, start: int, wanted: Tensor, found: Tensor, different: int) -> IntegrityError:
    rows = (wanted != found).reshape(len(wanted), -1).any(-1).nonzero()
    first = start + (int(rows[0]) if len(rows) else 0)
    worst = ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()
    key = "merged.head_differs" if item.name == HEAD else "merged.differs"
    return IntegrityError(
        key, name=item.name, merged=item.stored.file.parent, row=first, count=max(1, different), worst=worst
    )
