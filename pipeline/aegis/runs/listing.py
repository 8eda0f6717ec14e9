"""Summarizes a run for `aegis list` from manifests and metrics alone; no weights are read and no file is hashed."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegis.errors import IntegrityError
from aegis.runs.facts import AdapterFacts, VerifyFacts
from aegis.runs.manifest import read_manifest
from aegis.runs.metrics import read_metrics
from aegis.runs.run import Run

State = Literal["started", "training", "trained", "merged", "exported"]
Proof = Literal["proven", "refuted", "outdated", "none", "damaged"]


@dataclass(frozen=True)
class RunSummary:
    """A run's row in `aegis list`.

    Attributes:
        state: the last stage that the run has reached.
        step: the last recorded training step.
        loss: the last held-out loss, in nats per token; None if none was measured.
        bytes: size of all its files.
        proof: verify's result for the files that are there now.
    """

    path: Path
    state: State
    step: int
    loss: float | None
    bytes: int
    proof: Proof


def summarized(run: Run) -> RunSummary:
    """Return a run's summary; a damaged manifest makes its proof "damaged"."""
    rows = read_metrics(run.metrics)
    losses = [row["heldout_loss"] for row in rows if row.get("heldout_loss") is not None]
    step, loss = (rows[-1]["step"] if rows else 0), (losses[-1] if losses else None)
    proof = _proof(run)
    if run.adapter.is_dir():
        try:
            result = AdapterFacts.read(run.adapter).result
            step, loss = result.steps, result.heldout_loss
        except IntegrityError:
            proof = "damaged"
    return RunSummary(run.root, _state(run, step), step, loss, _size(run.root), proof)


def _size(folder: Path) -> int:
    """Return the bytes of all files; a training may remove some of them meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(place, name), follow_symlinks=False).st_size  # noqa: PTH116, PTH118
    return size


def _state(run: Run, step: int) -> State:
    reached: tuple[tuple[State, Path], ...] = (
        ("exported", run.gguf),
        ("merged", run.merged),
        ("trained", run.adapter),
    )
    found = next((state for state, place in reached if place.is_dir()), None)
    return found or ("training" if step else "started")


def _proof(run: Run) -> Proof:
    if not run.verify.is_dir() or not run.gguf.is_dir():
        return "none"
    try:
        manifest = read_manifest(run.verify)
        if run.made_anew(manifest) is not None:
            return "outdated"
        return "proven" if VerifyFacts.of(manifest).ok else "refuted"
    except IntegrityError:
        return "damaged"
