"""Tests of the merge benchmark: its contenders run, and a ratio refers to the copy of the same round."""

from __future__ import annotations

import sys
from pathlib import Path

import bench_merge
import pytest
from bench_merge import COPY, Run, contenders, measure, prepare, table


def test_memory_and_time_are_those_of_the_process(tmp_path: Path) -> None:
    """A process that fills 200 MB and works is seen to, and what it wrote is gone afterwards."""
    out = tmp_path / "out"
    code = f"import time; b = bytearray(b'x') * (200 << 20); time.sleep(0.3); __import__('os').mkdir({str(out)!r})"
    run = measure("filler", 0, [sys.executable, "-c", code], out)
    assert 200 << 20 < run.rss_bytes < 300 << 20
    assert run.seconds > 0.3
    assert not out.exists()


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="it broke"):
        measure("broken", 0, [sys.executable, "-c", "raise SystemExit('it broke')"], tmp_path / "out")


def test_every_contender_of_the_benchmark_runs(
    tmp_path: Path, quick_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a base of one layer: the copy, so8, dense and dequantized all end well."""
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    base_bytes = prepare(tmp_path, quick_base, layers=1)
    commands = contenders(tmp_path, base_bytes, [])
    assert list(commands)[:4] == [COPY, "aegis, so8", "aegis, dense", "aegis, dequantized"]
    commands.pop("peft", None)
    for name, command in commands.items():
        assert measure(name, 0, command, tmp_path / "out").seconds > 0


def test_ratios_refer_to_the_copy_of_the_same_round() -> None:
    """… so that a machine that is busy in one round does not count against either side."""
    seconds = {COPY: (1.0, 10.0, 2.0), "aegis, so8": (2.0, 10.0, 3.0)}
    runs = [
        Run(name, number, own[number], own[number], 1 << 30, 0.0)
        for number in range(3)
        for name, own in seconds.items()
    ]
    copy, ours = table(runs)
    assert (copy["times_copy"], ours["times_copy"]) == (1.0, 1.5)
    assert (ours["seconds"], ours["peak_gib"], ours["runs"]) == (3.0, 1.0, 3)


def test_peft_is_left_out_where_it_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "peft" not in contenders(tmp_path, 1 << 50, [])
    assert "peft is left out" in capsys.readouterr().out
    assert list(contenders(tmp_path, 1, ["aegis, so8"])) == [COPY, "aegis, so8"]
    assert bench_merge.PEFT_MEMORY > 1
