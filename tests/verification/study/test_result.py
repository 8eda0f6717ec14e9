"""Tests of the rule that recommends a file, of the front, and of the two parts of a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import IntegrityError
from aegis.verification.findings import Divergence
from aegis.verification.study.result import Measured, Speed, pareto_front, read_study, recommend


def row(quant: str, size: int, kl: float, variant: str = "plain") -> Measured:
    return Measured(quant, variant, size, f"{quant}{variant}", Divergence(kl, kl, kl, 1, 0), 2.0, Speed(1, 1))


ROWS = [row("Q8_0", 80, 0.001), row("Q4_K_M", 40, 0.015), row("Q4_K_M", 40, 0.012, "imatrix"), row("Q2_K", 20, 0.3)]


def named(rows: tuple[Measured, ...] | list[Measured]) -> list[str]:
    return [f"{row.quant} {row.variant}" for row in rows]


@pytest.mark.parametrize(
    ("tolerance", "wanted"),
    [(0.0001, "Q8_0 plain"), (0.0105, "Q8_0 plain"), (0.02, "Q4_K_M imatrix"), (1.0, "Q2_K plain")],
)
def test_the_smallest_file_within_the_tolerance_is_recommended(tolerance: float, wanted: str) -> None:
    """Of one size the nearer one; and the more is tolerated, the smaller the file."""
    assert named([recommend(ROWS, tolerance)]) == [wanted]
    assert named([recommend(ROWS[::-1], tolerance)]) == [wanted]


def test_the_tolerance_counts_from_the_best_measured_file() -> None:
    """Without Q8_0 the tolerance counts from the next best file."""
    assert named([recommend([row("Q3_K_M", 30, 0.1), row("Q2_K", 20, 0.3)], 0.02)]) == ["Q3_K_M plain"]
    assert named([recommend([row("Q2_K", 20, 0.3)], 0.02)]) == ["Q2_K plain"]


def test_the_front_leaves_out_files_that_another_one_beats() -> None:
    beaten = [row("Q5_0", 50, 0.02), row("Q8_0", 80, 0.001, "imatrix")]
    assert named(pareto_front(ROWS + beaten)) == ["Q2_K plain", "Q4_K_M imatrix", "Q8_0 plain"]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "aegis-quantize-study", "version": 9}', "[" * 100_000])
def test_a_damaged_report_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(IntegrityError, match=r"report\.json (is|was written)"):
        read_study(tmp_path / "report.json")
