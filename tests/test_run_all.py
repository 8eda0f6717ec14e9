"""Tests of aegis run: the stages run in order, and an export that fails its proof is not published."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config.settings import ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.errors import IntegrityError
from aegis.run_all import run_all
from aegis.runs.run import Run
from aegis.verification.verdict import read_report
from tests.conftest import Recorder


def test_an_export_that_fails_its_proof_is_not_left_at_its_name(
    quick_base: Path, tmp_path: Path, reporter: Recorder
) -> None:
    """Under a bound that no quantization can keep: exit 5, the files aside. Without it, the same run is proven."""
    run = Run(tmp_path / "run")
    short = {
        "max_steps": 2,
        "keep_windows": 8,
        "warmup_steps": 1,
        "annealing_steps": 1,
        "batch_size": 2,
        "max_length": 32,
    }
    configs = TrainConfig(base_model=str(quick_base), device="cpu", **short), MergeConfig(), ExportConfig()
    quick = VerifyConfig(tokens=128, threads=1, device="cpu")
    with pytest.raises(IntegrityError, match="the fault is in quantize") as caught:
        run_all(*configs, quick.model_copy(update={"max_kl_quantized": 1e-12}), run)
    assert "f16 → Q4_K_M" in caught.value.why
    assert caught.value.exit_code == 5
    assert not run.gguf.exists()
    assert list((run.root / "gguf.failed").glob("*-Q4_K_M.gguf"))
    assert read_report(run.verify / "report.json")["failed_stage"] == "quantize"

    reporter.said.clear()
    exported, verdict = run_all(*configs, quick, run)
    kept = [text for text in reporter.said if "was made like this before" in text]
    assert kept == [f"  {place} was made like this before, and is kept" for place in (run.adapter, run.merged)]
    assert verdict.failed_stage is None
    assert exported.files[0].parent == run.gguf
    assert exported.files[0].is_file()
