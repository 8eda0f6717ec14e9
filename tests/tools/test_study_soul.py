"""Tests of the soul study: its cells are valid settings, and its table pairs the seeds."""

from __future__ import annotations

import pytest
from study.cells import CELLS, COMMON
from study.tables import markdown
from study_soul import TRIAL, jobs, parse, path_of

from aegis.config.settings import TrainConfig


@pytest.mark.parametrize("cell", CELLS)
def test_each_cell_of_the_study_is_a_valid_training(cell: str) -> None:
    TrainConfig(**{**COMMON, **CELLS[cell]})
    TrainConfig(**{**COMMON, **CELLS[cell], **TRIAL})


def test_every_training_has_its_own_file() -> None:
    args = parse(["base", "out", "--domain", "ja=a.jsonl", "--domain", "en=b.jsonl", "--other", "c.jsonl"])
    paths = {path_of(args.out, job) for job in jobs(args)}
    assert len(paths) == len(jobs(args)) == 2 * 3 * len(CELLS)


def row(cell: str, seed: int, loss: float) -> dict[str, object]:
    judged = {"loss": loss, "temperature": 1.0, "calibration_error": 0.0, "kl": 0.1}
    return {"cell": cell, "domain": "ja", "seed": seed, "new": judged, "kept": judged, "other": judged, "seconds": 1}


def test_differences_are_paired_by_seed() -> None:
    """Seeds far apart from each other, and a difference that is the same in each, have an interval of zero."""
    reference, cell = "LoRA alone", "dense + keep"
    results = [row(reference, seed, 1.0 + seed) for seed in range(3)] + [
        row(cell, seed, 0.9 + seed) for seed in range(3)
    ]
    base = {name: {"loss": 2.0, "temperature": 1.0, "calibration_error": 0.0} for name in ("new", "kept", "other")}
    lines = markdown({"bases": {"ja": base}, "results": results})
    (found,) = [line for line in lines if line.startswith(f"| {cell} ")]
    assert "-0.1000 ± 0.0000" in found
