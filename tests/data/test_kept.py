"""Tests of kept text in windows: what fits, what is held out, and that a saved file is read back unchanged."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from aegis.data import kept
from aegis.data.kept import Kept, KeptReport, fill, missing_tokens, split
from aegis.data.packing import IGNORED

LENGTH, PAD = 20, 0


def texts(*lengths: int) -> list[np.ndarray]:
    """Return texts whose tokens are all different."""
    edges = np.cumsum([1, *lengths])
    return [np.arange(start, stop, dtype=np.int32) for start, stop in pairwise(edges)]


def make(count: int) -> Kept:
    return split(fill(texts(*[LENGTH] * count), count, LENGTH, PAD), KeptReport("written", 0, 0, 0))


def test_texts_fill_windows_in_order_and_stay_separate_documents() -> None:
    windows = fill(texts(12, 15, 25, 5), 3, LENGTH, PAD)
    batch = windows.batch([0, 1, 2])
    assert batch.input_ids[0].tolist() == [*range(1, 13), *range(13, 21)]
    assert batch.input_ids[1].tolist() == list(range(28, 48))
    assert batch.input_ids[2].tolist() == [*range(53, 58), *[PAD] * 15]
    assert batch.position_ids[0].tolist() == [*range(12), *range(8)]


def test_every_token_of_a_text_except_the_first_is_a_target() -> None:
    windows = fill(texts(12, 15), 1, LENGTH, PAD)
    labels = windows.batch([0]).labels[0]
    assert np.flatnonzero(labels == IGNORED).tolist() == [0, 12]
    assert windows.trained_per_window.tolist() == [18]


def test_no_more_windows_are_filled_than_requested() -> None:
    assert len(fill(texts(*[LENGTH] * 5), 3, LENGTH, PAD)) == 3
    assert len(fill(texts(9, 9, 9, 9), 2, LENGTH, PAD)) == 2


def test_missing_tokens_are_the_free_positions_of_the_windows() -> None:
    assert missing_tokens([], 2, LENGTH) == 2 * LENGTH
    assert missing_tokens([5], 2, LENGTH) == 2 * LENGTH - 5
    # a rest of 2 tokens is no place for a text
    assert missing_tokens([18], 2, LENGTH) == LENGTH
    assert missing_tokens([12, 30, 9], 2, LENGTH) == 11
    assert missing_tokens([LENGTH, LENGTH], 2, LENGTH) == 0


def test_the_last_eighth_is_held_out() -> None:
    found = make(17)
    assert (len(found.train), len(found.heldout)) == (15, 2)
    assert (found.report.windows, found.report.heldout_windows, found.report.tokens) == (15, 2, 17 * LENGTH)
    trained = set(found.train.batch(range(15)).input_ids.ravel().tolist())
    held = set(found.heldout.batch(range(2)).input_ids.ravel().tolist())
    assert trained.isdisjoint(held)
    assert len(trained | held) == 17 * LENGTH


def test_a_saved_file_is_read_back_unchanged(tmp_path: Path) -> None:
    """Tokens, split and numbers; a flipped bit gives nothing."""
    given = make(9)
    path = tmp_path / "kept" / "a.windows"
    kept.store(path, given)
    found = kept.load(path)
    assert found is not None
    assert (found.sha256, found.report) == (given.sha256, given.report)
    assert np.array_equal(found.heldout.batch([0]).input_ids, given.heldout.batch([0]).input_ids)
    spoiled = bytearray(path.read_bytes())
    spoiled[-40] ^= 1
    path.write_bytes(spoiled)
    assert kept.load(path) is None


def test_the_hash_covers_tokens_edges_and_split() -> None:
    same, other = make(9), make(10)
    assert make(9).sha256 == same.sha256 != other.sha256
    moved = Kept(same.heldout, same.train, same.report)
    assert moved.sha256 != same.sha256
    one = split(fill(texts(10, 10, 20), 2, LENGTH, PAD), same.report)
    two = split(fill(texts(9, 11, 20), 2, LENGTH, PAD), same.report)
    assert one.sha256 != two.sha256
