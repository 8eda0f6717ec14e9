"""Measures the other choice of merge's `base_weights`, in the memory of the merged model, without writing it."""

from __future__ import annotations

from typing import Any

import torch

from aegis import progress
from aegis.merging.base_weights import RoundTrip
from aegis.messages import phrase
from aegis.verification.divergence import Recording, compare, perplexity
from aegis.verification.structure import Structure
from aegis.verification.verdict import BaseComparison


def merge_the_other_way(model: Any, round_trip: RoundTrip, structure: Structure) -> None:
    """Replace the merged model's weights with those that a merge with the other choice would have written."""
    plan = structure.plan(round_trip if structure.base_weights == "original" else None)
    with progress.task(phrase("verify.other_merge"), len(round_trip.weights), "weight") as bar, torch.no_grad():
        for name in sorted(round_trip.weights):
            for start, stop, rows in plan.slabs(name, structure.base.shards.entries[name]):
                model.get_parameter(name)[start:stop].copy_(rows)
            bar.advance()


def choices(
    base_weights: str, trained: Recording, merged: Recording, other_way: Recording
) -> tuple[BaseComparison, ...]:
    """Compare both choices with the model as trained; `base_weights` is the choice that was merged."""
    both = {name: merged if name == base_weights else other_way for name in ("original", "dequantized")}
    return tuple(
        BaseComparison(name, found is merged, compare(trained, found), perplexity(found))
        for name, found in both.items()
    )
