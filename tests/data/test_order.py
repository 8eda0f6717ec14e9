"""Tests that a step's rows depend only on the seed and the step."""

from __future__ import annotations

import pytest

from aegis.data.order import Order, permutation


def test_every_epoch_has_every_window_once() -> None:
    order = Order(windows=10, seed=3)
    seen = [index for step in range(15) for index in order.indices(step, 4)]
    epochs = [seen[start : start + 10] for start in range(0, 60, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 6
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_steps_batch_does_not_depend_on_earlier_steps() -> None:
    straight = [Order(7, 1).indices(step, 3) for step in range(20)]
    assert Order(7, 1).indices(13, 3) == straight[13]
    assert Order(7, 2).indices(13, 3) != straight[13]


def test_batches_follow_each_other_without_a_gap() -> None:
    by_two = [i for step in range(9) for i in Order(6, 0).indices(step, 2)]
    by_three = [i for step in range(6) for i in Order(6, 0).indices(step, 3)]
    assert by_two == by_three


def test_fewer_windows_than_a_batch_are_repeated() -> None:
    assert Order(1, 0).indices(5, 3) == [0, 0, 0]
    with pytest.raises(ValueError, match="at least one"):
        Order(0, 0)


def test_the_shuffle_never_changes() -> None:
    """A run that is resumed under another version of this code must see the same rows."""
    assert permutation(12, 42, 0).tolist() == [4, 3, 5, 8, 0, 9, 7, 6, 1, 2, 11, 10]
    assert permutation(12, 42, 1).tolist() == [8, 7, 1, 9, 11, 0, 3, 10, 4, 6, 5, 2]


def test_the_shuffle_is_even() -> None:
    counts = [[0] * 5 for _ in range(5)]
    for epoch in range(4000):
        for place, number in enumerate(permutation(5, 9, epoch).tolist()):
            counts[number][place] += 1
    assert all(680 < count < 920 for row in counts for count in row)
