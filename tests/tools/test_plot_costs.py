"""Tests of the curves of the benchmarks: every point belongs to its curve, and the picture can be opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.image import imread
from plot_costs import curves, draw

MERGE = [
    {"base_bytes": size * 10**9, "table": [{"name": "aegis, so8", "seconds": seconds}]}
    for size, seconds in ((8, 18.0), (2, 6.0))
]
DATA = {"table": [{"rows": 1000, "windows": 9, "seconds": 5.0, "seconds_again": 3.0}]}
TRAIN = {
    "rows": [{"name": "max_length=512 compile=off", "ms": 140.0}, {"name": "max_length=4096 compile=off", "ms": None}],
    "peers": [{"peer": "hf", "length": 512, "recomputes": True, "ms": 200.0}],
}


def test_points_are_assigned_to_their_curves_in_order() -> None:
    assert curves([*MERGE, DATA, TRAIN]) == {
        "merge": {"aegis, so8": [(2.0, 6.0), (8.0, 18.0)]},
        "data": {"the first time": [(1000, 5.0)], "from the cache": [(1000, 3.0)]},
        "train": {"aegis, compile=off": [(512, 140.0)], "transformers + peft, recomputed": [(512, 200.0)]},
    }


def test_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="none of the benchmarks"):
        curves([{"table": [{"seconds": 1.0}]}])


def test_a_picture_has_a_panel_for_each_kind(tmp_path: Path) -> None:
    widths = []
    for documents in ([DATA], [*MERGE, DATA, TRAIN]):
        draw(curves(documents), tmp_path / "costs.png")
        widths.append(imread(tmp_path / "costs.png").shape[1])
    assert widths[1] == 3 * widths[0]
