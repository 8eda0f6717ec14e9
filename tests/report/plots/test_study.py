"""Tests of the study's picture: it can be drawn for any points, and differs where they differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.image import imread

from aegis.report.plots.study import StudyPoint, draw_study

POINTS = [
    StudyPoint("Q8_0", "plain", 4_000_000_000, 0.001, front=True, recommended=False),
    StudyPoint("Q4_K_M", "plain", 2_400_000_000, 0.02, front=False, recommended=False),
    StudyPoint("Q4_K_M", "imatrix", 2_400_000_000, 0.015, front=True, recommended=True),
]


def drawn(points: list[StudyPoint], path: Path) -> np.ndarray:
    draw_study(points, 0.021, path)
    return np.asarray(imread(path))


def test_the_picture_depends_only_on_the_measured_points(tmp_path: Path) -> None:
    """The same points, the same bytes; another KL or choice, another picture."""
    picture = drawn(POINTS, tmp_path / "one.png")
    assert picture.shape[:2] == (552, 960)
    assert (picture[..., :3] < 0.9).any(axis=-1).mean() > 0.01
    drawn(POINTS, tmp_path / "again.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    moved = [POINTS[0], replace(POINTS[1], kl=0.2), POINTS[2]]
    chosen = [replace(POINTS[0], recommended=True), *POINTS[1:]]
    for other in (moved, chosen):
        assert not np.array_equal(drawn(other, tmp_path / "other.png"), picture)


def test_a_single_file_and_a_kl_of_zero_can_be_drawn(tmp_path: Path) -> None:
    drawn([replace(POINTS[2], kl=0.0, bytes=2_000_000)], tmp_path / "one.png")
