"""Tests that windows have every token once, and keep documents separate."""

from __future__ import annotations

import numpy as np
import pytest

from aegis.data.example import Example
from aegis.data.packing import IGNORED, Windows, cut, pack
from tests.stored_pieces import stored

PAD = 9


def example(*ids: int, trained_from: int = 1, document: bool = False) -> Example:
    return Example(np.array(ids, np.int32), np.arange(len(ids)) >= trained_from, document)


def packed(examples: list[Example], *, packing: bool = True, seed: int = 0, max_length: int = 6) -> Windows:
    return pack(stored(examples), max_length=max_length, packing=packing, seed=seed, pad_token_id=PAD)


def test_a_batch_has_the_models_inputs_of_its_windows() -> None:
    windows = packed([example(11, 12, 13, trained_from=2), example(21, 22)])
    batch = windows.batch([0])
    assert len(windows) == 1
    assert batch.input_ids.tolist() == [[11, 12, 13, 21, 22, PAD]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 13, IGNORED, 22, IGNORED]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert {array.dtype for array in batch} == {np.dtype(np.int64)}


def test_without_packing_each_row_has_its_own_window() -> None:
    windows = packed([example(1, 2), example(3, 4, 5)], packing=False)
    assert windows.batch([1, 0]).input_ids.tolist() == [[3, 4, 5, PAD, PAD, PAD], [1, 2, PAD, PAD, PAD, PAD]]
    assert windows.batch(range(1, 2)).position_ids.tolist() == [[0, 1, 2, 0, 1, 2]]


def random_pieces(count: int, max_length: int) -> list[Example]:
    lengths = np.random.default_rng(0).integers(2, max_length + 1, count)
    return [example(*range(1000 * i, 1000 * i + n)) for i, n in enumerate(lengths.tolist())]


@pytest.mark.parametrize("packing", [True, False])
def test_every_token_is_packed_once(packing: bool) -> None:
    pieces = random_pieces(500, 64)
    windows = packed(pieces, packing=packing, max_length=64)
    found = []
    for window in range(len(windows)):
        batch = windows.batch([window])
        documents = np.cumsum(batch.position_ids[0] == 0)
        for document in range(1, documents[-1] + 1):
            inside = documents == document
            ids = batch.input_ids[0][inside].tolist()
            assert batch.position_ids[0][inside].tolist() == list(range(len(ids)))
            if ids[0] != PAD:
                found.append(ids)
                assert batch.labels[0][inside].tolist() == [IGNORED, *ids[1:]]
    assert sorted(found) == sorted(piece.ids.tolist() for piece in pieces)
    assert windows.trained_tokens == sum(len(piece.ids) - 1 for piece in pieces)


def test_packing_wastes_little_and_depends_only_on_the_seed() -> None:
    pieces = random_pieces(500, 64)
    first, again, other = (packed(pieces, seed=seed, max_length=64) for seed in (1, 1, 2))
    in_file_order, room = 0, 0
    for piece in pieces:
        if len(piece.ids) > room:
            in_file_order, room = in_file_order + 1, 64
        room -= len(piece.ids)
    assert len(first) < 1.06 * len(first.tokens) / 64 < in_file_order / 1.2
    codes = [windows.tokens.read(0, len(windows.tokens)) for windows in (first, again, other)]
    assert np.array_equal(codes[0], codes[1])
    assert not np.array_equal(codes[0], codes[2])


def test_a_long_chat_loses_its_end() -> None:
    pieces = cut(example(1, 2, 3, 4, 5, trained_from=2), 4)
    assert [piece.ids.tolist() for piece in pieces] == [[1, 2, 3, 4]]
    assert pieces[0].trained.tolist() == [False, False, True, True]


@pytest.mark.parametrize("trained_from", [4, 5])
def test_a_chat_without_targets_inside_the_window_is_dropped(trained_from: int) -> None:
    assert cut(example(1, 2, 3, 4, 5, trained_from=trained_from), 4) == []


def test_a_long_document_goes_into_consecutive_windows() -> None:
    pieces = cut(example(*range(1, 10), trained_from=0, document=True), 4)
    assert [piece.ids.tolist() for piece in pieces] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert [piece.trained.tolist() for piece in pieces] == [[False, True, True, True]] * 2


def test_cutting_does_not_change_the_example() -> None:
    whole = example(1, 2, 3, trained_from=0)
    cut(whole, 4)
    assert whole.trained.all()
