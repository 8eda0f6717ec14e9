"""Tests of the coverage-guided fuzzer: a short run of each parser with a fixed seed, and proof that guidance helps."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import Laboratory

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is for Linux on x86-64, Python 3.11 to 3.13"
)
_NAMES = (
    "safetensors headers",
    "safetensors indexes",
    "soul files",
    "adapters",
    "run manifests",
    "TOML",
    "data rows",
    "model configs",
    "soul.pt",
    "GGUF headers",
    "archives",
)


@pytest.fixture(scope="module")
def gguf(laboratory: Laboratory) -> Path:
    (found,) = (laboratory.start("verify") / "run" / "gguf").glob("*Q8_0.gguf")
    return found


def fuzz(base: Path, gguf: Path, work: Path, *more: str) -> list[dict[str, Any]]:
    given = ["--base", str(base), "--gguf", str(gguf), "--work", str(work), *more]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.guided", *given],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'pipeline'}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_fuzzing_finds_no_bug_in_any_parser(laboratory: Laboratory, gguf: Path, tmp_path: Path) -> None:
    shown = fuzz(laboratory.base, gguf, tmp_path / "work", "--runs", "400", "--seed", "1618")
    assert tuple(row["target"] for row in shown) == _NAMES
    assert [row for row in shown if row["faults"]] == []
    assert all(row["cases"] == 400 for row in shown)
    # what reached something new was kept, beside the honest files
    assert sum(row["kept"] > 4 for row in shown) >= 7


def test_guided_fuzzing_finds_what_blind_mutation_does_not(laboratory: Laboratory, gguf: Path, tmp_path: Path) -> None:
    """The control: a bug behind four checks, the same mutations, seed and number of inputs."""
    given = ("--only", "planted", "--runs", "20000", "--seed", "0")
    (seeing,) = fuzz(laboratory.base, gguf, tmp_path / "seeing", *given)
    (blind,) = fuzz(laboratory.base, gguf, tmp_path / "blind", *given, "--blind")
    assert list(seeing["faults"]) == ["IndexError: list index out of range"]
    assert blind["faults"] == {}
