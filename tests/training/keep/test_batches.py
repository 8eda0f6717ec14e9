"""Tests that the order of kept windows depends only on seed and step, for any number of processes."""

from __future__ import annotations

import pytest

from aegis.data.order import Order
from aegis.training.keep.batches import KeepSchedule


def schedule(*, every: int = 4, micro_batches: int = 1, batch_size: int = 2, seed: int = 42) -> KeepSchedule:
    return KeepSchedule(12, every, micro_batches, batch_size, seed)


def test_there_is_one_kept_pass_per_keep_every_micro_batches() -> None:
    assert [len(schedule().passes(step)) for step in range(9)] == [1, 0, 0, 0, 1, 0, 0, 0, 1]
    assert [len(schedule(every=1).passes(step)) for step in range(3)] == [1, 1, 1]
    assert [len(schedule(micro_batches=8).passes(step)) for step in range(3)] == [2, 2, 2]
    assert [len(schedule(every=3, micro_batches=2).passes(step)) for step in range(6)] == [1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize(("every", "micro_batches"), [(1, 1), (4, 1), (3, 2), (2, 8)])
def test_passes_follow_one_order_without_gap_or_repetition(every: int, micro_batches: int) -> None:
    """Two steps' passes are neighbours in one endless order, each epoch of which holds every window once."""
    made = schedule(every=every, micro_batches=micro_batches)
    seen = [number for step in range(48) for chosen in made.passes(step) for number in chosen]
    for start in range(0, len(seen) - 11, 12):
        assert sorted(seen[start : start + 12]) == list(range(12))


def test_the_order_of_kept_windows_differs_from_that_of_the_data() -> None:
    def of(seed: int) -> list[int]:
        return [number for step in range(24) for chosen in schedule(seed=seed).passes(step) for number in chosen]

    assert of(42) == of(42) != of(43)
    assert of(42) != [number for step in range(6) for number in Order(12, 42).indices(step, 2)]
