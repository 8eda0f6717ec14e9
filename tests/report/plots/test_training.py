"""Tests of pictures of a training: any rows can be drawn, and the same numbers give the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aegis.report.plots.training import PICTURES, draw_all
from aegis.soul.gate import AlphaSchedule, gate, phase

SCHEDULE = AlphaSchedule(10, 60)
ROWS: list[dict[str, Any]] = [
    {
        "step": step,
        "task_loss": 3.0 / (1 + step / 30),
        "heldout_loss": 3.2 / (1 + step / 40) if step % 50 == 0 else None,
        "keep_kl": 0.01 * step if step % 20 == 0 else None,
        "alpha": SCHEDULE(step),
        "gate": gate(SCHEDULE(step)),
        "phase": phase(SCHEDULE(step)).name.lower(),
        "turned_degrees": [step * share for share in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)],
    }
    for step in range(10, 110, 10)
]
START, END = np.linspace(0, 3.1, 40), np.linspace(0, 2.0, 40)


def drawn(folder: Path, rows: list[dict[str, Any]], end: np.ndarray = END) -> dict[str, bytes]:
    folder.mkdir()
    draw_all(rows, START, end, 0.8345, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_training_gives_the_same_bytes(tmp_path: Path) -> None:
    """And another one other pictures, each of them."""
    first = drawn(tmp_path / "a", ROWS)
    assert set(first) == set(PICTURES)
    assert drawn(tmp_path / "b", ROWS) == first
    changed = [{**row, "task_loss": 1.0, "alpha": 0.0, "turned_degrees": None} for row in ROWS]
    other = drawn(tmp_path / "c", changed, END / 2)
    assert all(other[name] != first[name] for name in PICTURES)
    for name in PICTURES:
        with Image.open(tmp_path / "a" / name) as picture:
            assert (picture.format, picture.size) == ("PNG", (960, 432))


def test_the_loss_on_kept_text_has_its_own_panel(tmp_path: Path) -> None:
    """Where text was kept; without it, training.png is the loss alone."""
    kept = drawn(tmp_path / "kept", ROWS)
    without = drawn(tmp_path / "without", [{**row, "keep_kl": None} for row in ROWS])
    older = drawn(tmp_path / "older", [{k: v for k, v in row.items() if k != "keep_kl"} for row in ROWS])
    assert kept["training.png"] != without["training.png"] == older["training.png"]
    assert kept["phase.png"] == without["phase.png"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        ROWS[:1],
        [{"step": 3}],
        [{"step": 3, "task_loss": "x", "phase": [], "alpha": 10**400, "turned_degrees": [0, "x"], "gate": None}],
        [{"step": 3, "task_loss": float("nan"), "phase": "golden", "turned_degrees": ["x"] * 7}],
    ],
)
def test_any_rows_can_be_drawn(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """None, one, those of another version, and nonsense."""
    assert set(drawn(tmp_path / "a", rows)) == set(PICTURES)


@pytest.mark.parametrize(("plots", "code"), [("aegis.report.plots.training", 0), ("os", 1)], ids=["ours", "control"])
def test_a_notebooks_backend_that_is_not_installed_does_not_matter(plots: str, code: int) -> None:
    """A notebook sets it for `!aegis run`, which may be in another environment."""
    command = [sys.executable, "-c", f"import {plots}; import matplotlib"]
    environment = {**os.environ, "MPLBACKEND": "not_installed"}
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == code
