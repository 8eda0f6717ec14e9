"""Tests of the held-out loss: each rise is reported once, and the best checkpoint is found with it."""

from __future__ import annotations

import pytest

from aegis.training.best import HeldoutWatch, best_step
from tests.conftest import Recorder


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ([3.0, 2.0, 2.1, 2.2, 2.3], 1),
        ([3.0, 2.0, 1.5, 1.4], 0),  # the control: it falls to the end
        ([3.0, 2.0, 2.1, 1.9, 2.0, 1.8], 0),  # one worse value is noise
        ([2.0, 2.001, 2.002, 2.001], 0),  # so is less than a percent
        ([2.0, 2.1, 2.2, 1.9, 2.0, 2.1], 2),
    ],
)
def test_a_risen_held_out_loss_is_reported(losses: list[float], warned: int, reporter: Recorder) -> None:
    watch = HeldoutWatch()
    for step, loss in enumerate(losses, 1):
        watch.add(100 * step, loss)
    assert len(reporter.warned) == warned
    if warned:
        assert f"step {100 * (losses.index(2.0) + 1)}:" in reporter.warned[0]


def test_the_best_step_is_one_of_the_regular_checkpoints() -> None:
    """A row without a held-out loss, and one that an interruption left, do not count; equal losses: the earliest."""

    def row(step: int, loss: float | None) -> dict[str, object]:
        return {"step": step, "heldout_loss": loss}

    rows = [row(1, None), row(100, 2.0), row(137, 0.5), row(200, 1.5), row(300, 1.5), row(350, 1.6)]
    assert best_step(rows, 100, 350) == 200
    assert best_step([*rows, row(350, 1.0)], 100, 350) == 350
    assert best_step(rows, 137, 350) == 137
    assert best_step([row(1, None)], 100, 350) is None
