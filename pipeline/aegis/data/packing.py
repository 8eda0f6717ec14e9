"""Packs examples into windows of one fixed length, with the documents separated.

Positions restart at 0 in each document, so transformers builds a block-diagonal causal mask (if it gets no attention
mask and no cache), and no label makes one document's last token predict the next document's first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis.data.example import Example
from aegis.data.order import permutation
from aegis.data.tokens import Codes, TokenFile, encoded, ids_of

IGNORED = -100
"""The label of a token that is not trained, which `torch.nn.functional.cross_entropy` ignores by default."""

_BUFFER = 4096
"""Examples that are packed at a time: more do not pack tighter, and fewer pack worse."""


class Batch(NamedTuple):
    """Arrays of shape (batch, max_length), int64. `labels` are not shifted: labels[i] is input_ids[i] or IGNORED."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of `max_length` tokens, stored as the tokens of their pieces without padding.

    Window w has the pieces [first_piece[w], first_piece[w + 1]) one after the other; piece p has the tokens
    [first_token[p], first_token[p + 1]). All arrays are int64.
    """

    max_length: int
    pad_token_id: int
    tokens: TokenFile
    first_token: NDArray[np.int64]
    first_piece: NDArray[np.int64]
    trained_per_window: NDArray[np.int64]
    """Number of labels per window that are not IGNORED."""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    @property
    def trained_tokens(self) -> int:
        """The number of labels that are not IGNORED."""
        return int(self.trained_per_window.sum())

    def pieces(self) -> Iterator[NDArray[np.int32]]:
        """Yield the token ids of each piece."""
        for start, stop in pairwise(self.first_token):
            yield ids_of(self.tokens.read(int(start), int(stop)))

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the windows with these numbers, one per row; padding is one more document, and is not trained."""
        shape = (len(indices), self.max_length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        position_ids = np.empty(shape, dtype=np.int64)
        for row, window in enumerate(indices):
            pieces = self.first_token[self.first_piece[window] : self.first_piece[window + 1] + 1]
            codes = self.tokens.read(int(pieces[0]), int(pieces[-1]))
            input_ids[row, : len(codes)] = ids_of(codes)
            labels[row, : len(codes)] = np.where(codes >= 0, codes, IGNORED)
            edges = [*(pieces - pieces[0]).tolist(), self.max_length]
            for start, end in pairwise(edges):
                position_ids[row, start:end] = np.arange(end - start)
        return Batch(input_ids, labels, position_ids)


class Pieces:
    """A growing list of examples: their tokens are on the disk, and each takes eight bytes of memory.

    Args:
        folder: folder for the tokens; the system's temporary folder if None.

    Raises:
        EnvironmentFault: the disk is full, here and in `append`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._tokens = TokenFile.unnamed(folder)
        self._ends = array("q", [0])

    def append(self, piece: Example) -> None:
        """Add an example; `is_document` is not stored."""
        self._tokens.append(encoded(piece.ids, piece.trained))
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def lengths(self) -> NDArray[np.int64]:
        """Return the length of each piece in tokens."""
        ends = np.frombuffer(self._ends, np.int64)
        return ends[1:] - ends[:-1]

    def codes(self, number: int) -> Codes:
        """Return the tokens of one piece."""
        return self._tokens.read(self._ends[number], self._ends[number + 1])


def cut(example: Example, max_length: int) -> list[Example]:
    """Cut a document into as many pieces as it needs, and cut off the end of a chat that is too long.

    The first token of a piece is never trained, because nothing comes before it in its window. A piece without a
    trained token is left out, so the list may be empty.
    """
    ids, trained, is_document = example
    starts = range(0, len(ids), max_length) if is_document else [0]
    pieces = []
    for start in starts:
        piece = trained[start : start + max_length].copy()
        piece[:1] = False
        if piece.any():
            pieces.append(Example(ids[start : start + max_length], piece, is_document))
    return pieces


def pack(
    pieces: Pieces,
    *,
    max_length: int,
    packing: bool,
    seed: int,
    pad_token_id: int,
    chosen: NDArray[np.int64] | None = None,
    folder: Path | None = None,
) -> Windows:
    """Put pieces of at most `max_length` tokens into windows; without `packing`, one per window.

    Args:
        chosen: the numbers of the pieces to use; all if None.
        folder: folder for the tokens; the system's temporary folder if None.

    Raises:
        EnvironmentFault: the disk is full.
    """
    lengths = pieces.lengths()
    order = np.arange(len(lengths)) if chosen is None else chosen
    if packing:
        packed, first_piece = _best_fit(lengths[order], max_length, seed)
        order = order[packed]
        del packed  # eight bytes per piece
    else:
        first_piece = np.arange(len(order) + 1)
    first_token = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(lengths[order], out=first_token[1:])
    tokens = TokenFile.unnamed(folder)
    trained = np.empty(len(order), dtype=np.int64)
    for index, number in enumerate(order):
        codes = pieces.codes(int(number))
        tokens.append(codes)
        trained[index] = np.count_nonzero(codes >= 0)
    trained_per_window = np.add.reduceat(trained, first_piece[:-1]) if len(order) else trained
    return Windows(max_length, pad_token_id, tokens, first_token, first_piece, trained_per_window)


def _best_fit(lengths: NDArray[np.int64], max_length: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack by best-fit decreasing, in shuffled buffers, so that neighbours in the file do not stay neighbours.

    Returns:
        The pieces' indices in the order of the windows, and the first piece of each window. Flat arrays, because a list
        per window would take ten times the memory.
    """
    shuffled = permutation(len(lengths), seed, 0)
    order, first_piece = array("q"), array("q", [0])
    for start in range(0, len(shuffled), _BUFFER):
        windows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens free, window), the fullest window first
        numbers = shuffled[start : start + _BUFFER]
        for number, length in sorted(
            zip(numbers.tolist(), lengths[numbers].tolist(), strict=True), key=lambda pair: -pair[1]
        ):
            fitting = bisect_left(room, (length, 0))
            if fitting < len(room):
                free, window = room.pop(fitting)
                windows[window].append(number)
            else:
                free, window = max_length, len(windows)
                windows.append([number])
            if free > length:
                insort(room, (free - length, window))
        for one in windows:
            order.extend(one)
            first_piece.append(len(order))
    return np.frombuffer(order, np.int64), np.frombuffer(first_piece, np.int64)
