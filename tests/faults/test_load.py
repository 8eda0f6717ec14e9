"""Tests with small versions of `python tools/sweep_load.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from aegis.runs.run import Run
from tests.faults.harness import Laboratory
from tools.sweep_load import larger_base, merge_into, write_rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def test_memory_does_not_grow_with_the_base(laboratory: Laboratory, tmp_path: Path) -> None:
    """40 shards of 5 MB, one tensor each, take no more than 5 of them."""
    peaks = []
    for count in (5, 40):
        place = tmp_path / str(count)
        place.mkdir()
        extra = [(f"model.layers.{number + 1}.mlp.x.weight", (2560, 1024)) for number in range(count)]
        larger_base(laboratory.base, place / "base", extra, count)
        peaks.append(merge_into(laboratory, place, place / "base").peak_bytes)
    assert peaks[1] - peaks[0] < 40e6


def test_a_row_takes_little_more_than_its_tokens(laboratory: Laboratory, tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 31_000):
        write_rows(tmp_path / f"{count}.jsonl", count)
        arguments = [*laboratory.arguments("train"), "--dataset", tmp_path / f"{count}.jsonl", "--run", str(count)]
        ended = laboratory.forked.aegis(tmp_path, *arguments)
        assert ended.code == 0, ended.output
        peaks.append(ended.peak_bytes)
    assert (peaks[1] - peaks[0]) / 30_000 < 2000


def test_the_number_of_files_does_not_depend_on_the_steps(laboratory: Laboratory, tmp_path: Path) -> None:
    sizes = []
    for count in (20, 80):
        arguments = [*laboratory.arguments("train"), "--max-steps", count, "--save-steps", "5", "--run", str(count)]
        ended = laboratory.forked.aegis(tmp_path, *arguments, "--keep-checkpoints", "2")
        assert ended.code == 0, ended.output
        run = Run(tmp_path / str(count))
        rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
        assert [row["step"] for row in rows] == list(range(1, count + 1))
        sizes.append(len([path for path in run.root.rglob("*") if path.is_file()]))
    assert sizes[0] == sizes[1]
