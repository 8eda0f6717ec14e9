"""Tests that a file quantized with an importance matrix is compared with the quantizer's output for that matrix."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from aegis.config.settings import ExportConfig
from aegis.llama_cpp import convert, measure_importance, quantize
from aegis.runs.manifest import file_sha256
from aegis.verification.findings import Check
from aegis.verification.quantized_checks import Recipe, check_quantized_file
from aegis.verification.run_checks import Checks
from tests.conftest import MakeRandom

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="imatrix is not compiled there")

QUANT = "Q4_K_M"
TEXTS = {"own": "春は桜、夏は花火、秋は紅葉、冬は雪がきれいです。\n" * 40, "other": "0123456789 " * 400}


@dataclass(frozen=True)
class Files:
    f16: Path
    imatrix: dict[str, Path]
    quantized: Path
    plain: Path


@pytest.fixture(scope="module")
def files(make_random: MakeRandom, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("imatrix")
    f16 = folder / "model-f16.gguf"
    convert(make_random("llama"), f16, model_name="tiny")
    matrices = {}
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        matrices[name] = folder / f"{name}.gguf"
        measure_importance(f16, folder / f"{name}.txt", matrices[name], chunk_tokens=64, threads=1)
    quantized, plain = folder / "with.gguf", folder / "without.gguf"
    quantize(f16, quantized, QUANT, threads=1, imatrix=matrices["own"])
    quantize(f16, plain, QUANT, threads=1)
    return Files(f16, matrices, quantized, plain)


def checked(path: Path, files: Files, recorded: Path, *at_hand: Path) -> list[Check]:
    """Check a file that was made with the matrix `recorded`, according to its manifest."""
    checks = Checks()
    recipe = Recipe.of(ExportConfig(), {"imatrix": file_sha256(recorded)}, *at_hand)
    check_quantized_file(checks, path, QUANT, files.f16, recipe)
    return checks.done


def caveats(checks: list[Check]) -> set[str]:
    return {part.key for check in checks for part in (check.detail, *check.detail.parts)}


def test_with_its_matrix_at_hand_the_file_is_proven(files: Files) -> None:
    own = files.imatrix["own"]
    done = checked(files.quantized, files, own, own)
    assert [check.ok for check in done] == [True] * 3, done
    assert "quantized.no_imatrix" not in caveats(done)


def test_without_its_matrix_the_rows_are_bounded_and_the_report_says_so(files: Files) -> None:
    done = checked(files.quantized, files, files.imatrix["own"], files.imatrix["other"])
    assert [check.ok for check in done] == [True] * 3, done
    assert "quantized.no_imatrix" in caveats(done)


def test_a_file_made_with_another_matrix_is_found(files: Files) -> None:
    """It is whole and of the right types; only the rows tell."""
    refused(checked(files.quantized, files, files.imatrix["other"], files.imatrix["other"]))


def test_a_file_made_without_the_matrix_is_found(files: Files) -> None:
    refused(checked(files.plain, files, files.imatrix["own"], files.imatrix["own"]))


def refused(done: list[Check]) -> None:
    assert [(check.stage, check.ok) for check in done] == [("quantize", True)] * 2 + [("quantize", False)]
