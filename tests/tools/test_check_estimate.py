"""Tests of the comparison of estimates with a benchmark's rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from check_estimate import main

from aegis.config.train_settings import TrainConfig
from aegis.training.execution.options import ExecutionOptions
from aegis.training.planning.estimate import MemoryEstimator
from tests.conftest import MakeRandom


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.05, 0), (1.3, 1), (0.7, 1)])
def test_an_estimate_may_be_off_by_a_tenth(
    make_random: MakeRandom, tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, code: int
) -> None:
    base = make_random("phi3", num_hidden_layers=4)
    config = TrainConfig(max_length=128, rotation="dense", keep_weight=0)
    options = ExecutionOptions(compiled=True, offloaded_layers=3)
    peak = MemoryEstimator(base, config, "cuda", (9, 0)).estimate(128, options).peak
    name = "max_length=128 activation_checkpointing=on rotation=dense dataset=short"
    rows = [
        {"name": name, "peak_gib": factor * peak / 2**30, "options": vars(options)},
        {"name": "max_length=8192", "error": "out of memory"},
    ]
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"rows": rows}), encoding="utf-8")
    assert main(["--template", str(base), "--measured", str(file)]) == code
    assert f"{1 / factor - 1:+.1%}" in capsys.readouterr().out


def test_a_benchmark_without_results_is_a_failure(quick_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text('{"rows": [{"name": "x", "error": "out of memory"}]}', encoding="utf-8")
    assert main(["--template", str(quick_base), "--measured", str(file)]) == 1
