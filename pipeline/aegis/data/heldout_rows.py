"""Chooses the held-out rows by their tokens, so that a row and its duplicates are on the same side."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from aegis.data.example import Example


def row_key(pieces: list[Example], seed: int) -> int:
    """Hash a row's tokens and mask to 64 bits: rows with the same tokens and mask have the same key."""
    digest = hashlib.blake2b(digest_size=8, key=str(seed).encode())
    for piece in pieces:
        digest.update(piece.ids.tobytes() + piece.trained.tobytes())
    return int.from_bytes(digest.digest(), "big")


def pieces_of(rows: NDArray[np.int64], first_piece: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers of these rows' pieces, in ascending order."""
    chosen = np.zeros(len(first_piece) - 1, np.bool_)
    chosen[rows] = True
    return np.flatnonzero(np.repeat(chosen, np.diff(first_piece)))


def split(keys: NDArray[np.uint64], heldout_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of training rows and of held-out rows; the distinct rows with the lowest keys are held out.

    The choice depends on content, not on order, so a row and its duplicates are on the same side.
    """
    distinct, first_row = np.unique(keys, return_index=True)
    count = min(heldout_rows, len(distinct) // 10)
    train = np.flatnonzero(keys > distinct[count - 1]) if count else np.arange(len(keys))
    return train, np.sort(first_row[:count])
