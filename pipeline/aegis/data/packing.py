"""Examples side by side in windows of one fixed length, each document apart from its neighbours.

Apart means: positions restart at 0 in each, from which transformers builds a block-diagonal causal mask (when it
gets no attention mask and no cache), and no label asks one document's last token for the next one's first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis.data.chat import Example
from aegis.data.order import permutation
from aegis.data.tokens import Codes, TokenFile, encoded, ids_of

IGNORED = -100
"""The label of a token that is not learnt: what `torch.nn.functional.cross_entropy` leaves out by default."""

_BUFFER = 4096
"""Examples fitted against one another at a time: more pack no tighter, and fewer would."""


class Batch(NamedTuple):
    """Each (batch, max_length) int64. `labels` are not shifted: labels[i] is ids[i] or IGNORED."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    document_ids: NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Windows of `max_length` tokens, kept as the tokens of their pieces without padding.

    Window w holds the pieces first_piece[w] to first_piece[w + 1], one after the other; piece p holds the tokens
    first_token[p] to first_token[p + 1]. All arrays are int64.
    """

    max_length: int
    pad_token_id: int
    tokens: TokenFile
    first_token: NDArray[np.int64]
    first_piece: NDArray[np.int64]
    trained_per_window: NDArray[np.int64]
    """How many labels of each window are not IGNORED."""

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    @property
    def trained_tokens(self) -> int:
        """How many labels are not IGNORED."""
        return int(self.trained_per_window.sum())

    def pieces(self) -> Iterator[NDArray[np.int32]]:
        """The token ids of each piece."""
        for start, stop in pairwise(self.first_token):
            yield ids_of(self.tokens.read(int(start), int(stop)))

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows of these numbers, one a row. Padding is one more document, nothing of it learnt."""
        shape = (len(indices), self.max_length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        position_ids = np.empty(shape, dtype=np.int64)
        document_ids = np.empty(shape, dtype=np.int64)
        for row, window in enumerate(indices):
            pieces = self.first_token[self.first_piece[window] : self.first_piece[window + 1] + 1]
            codes = self.tokens.read(int(pieces[0]), int(pieces[-1]))
            input_ids[row, : len(codes)] = ids_of(codes)
            labels[row, : len(codes)] = np.where(codes >= 0, codes, IGNORED)
            edges = [*(pieces - pieces[0]).tolist(), self.max_length]
            for document, (start, end) in enumerate(pairwise(edges)):
                position_ids[row, start:end] = np.arange(end - start)
                document_ids[row, start:end] = document
        return Batch(input_ids, labels, position_ids, document_ids)


class Pieces:
    """Examples as they come: their tokens on disk, eight bytes for each in memory.

    Args:
        examples: the first ones.
        folder: on the disk that is to hold the tokens; the system's temporary folder if None.

    Raises:
        EnvironmentFault: the disk is full, here and in `append`.
    """

    def __init__(self, examples: Iterable[Example] = (), folder: Path | None = None) -> None:
        self._tokens = TokenFile.unnamed(folder)
        self._ends = array("q", [0])
        for example in examples:
            self.append(example)

    def append(self, piece: Example) -> None:
        """Add one; that it was a document is forgotten."""
        self._tokens.append(encoded(piece.ids, piece.trained))
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def lengths(self) -> NDArray[np.int64]:
        """The length of each piece, in tokens."""
        ends = np.frombuffer(self._ends, np.int64)
        return ends[1:] - ends[:-1]

    def codes(self, number: int) -> Codes:
        """The tokens of one piece."""
        return self._tokens.read(self._ends[number], self._ends[number + 1])


class Cut(NamedTuple):
    """An example brought to the window's length: no piece is left when nothing in reach was to be learnt."""

    pieces: list[Example]
    truncated: bool


def cut(example: Example, max_length: int) -> Cut:
    """A document goes into as many pieces as it needs; of a chat that is too long the end is lost.

    The first token of a piece is never learnt, since nothing in its window comes before it.
    """
    ids, trained, is_document = example
    starts = range(0, len(ids), max_length) if is_document else [0]
    pieces = []
    for start in starts:
        piece = trained[start : start + max_length].copy()
        piece[:1] = False
        if piece.any():
            pieces.append(Example(ids[start : start + max_length], piece, is_document))
    return Cut(pieces, truncated=not is_document and len(ids) > max_length)


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
    """Put pieces of at most `max_length` tokens into windows; without `packing`, one in each.

    Args:
        chosen: the numbers of the pieces to take; all if None.
        folder: on the disk that is to hold the tokens; the system's temporary folder if None.

    Raises:
        EnvironmentFault: the disk is full.
    """
    lengths = pieces.lengths()
    order = np.arange(len(lengths)) if chosen is None else chosen
    if packing:
        places, first_piece = _best_fit(lengths[order], max_length, seed)
        order = order[places]
        del places  # eight bytes a piece
    else:
        first_piece = np.arange(len(order) + 1)
    first_token = np.zeros(len(order) + 1, dtype=np.int64)
    np.cumsum(lengths[order], out=first_token[1:])
    tokens = TokenFile.unnamed(folder)
    trained = np.empty(len(order), dtype=np.int64)
    for place, number in enumerate(order):
        codes = pieces.codes(int(number))
        tokens.append(codes)
        trained[place] = np.count_nonzero(codes >= 0)
    trained_per_window = np.add.reduceat(trained, first_piece[:-1]) if len(order) else trained
    return Windows(max_length, pad_token_id, tokens, first_token, first_piece, trained_per_window)


def _best_fit(lengths: NDArray[np.int64], max_length: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Best-fit decreasing, a shuffled buffer at a time, so that neighbours in the file do not stay neighbours.

    Returns:
        The pieces' places in the order of the windows, and the first piece of each window. Flat, and not a list of
        numbers for each window: that takes ten times the memory of the numbers.
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
            place = bisect_left(room, (length, 0))
            if place < len(room):
                free, window = room.pop(place)
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
