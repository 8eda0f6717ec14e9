"""Tests of the data benchmark: its rows are all different, and all of them are prepared."""

from __future__ import annotations

from pathlib import Path

import bench_data


def test_every_row_of_the_benchmark_is_different_and_is_prepared(tmp_path: Path, quick_base: Path) -> None:
    data = tmp_path / "rows.jsonl"
    bench_data.write_rows(data, 12_000)
    lines = data.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(set(lines)) == 12_000
    bench_data.write_rows(data, 300)
    first = bench_data.measure(data, quick_base, tmp_path / "cache")
    assert first["rows"] == 300
    assert first["seconds"] > 0
    assert bench_data.measure(data, quick_base, tmp_path / "cache")["tokens"] == first["tokens"]
