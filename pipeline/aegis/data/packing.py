"""Examples side by side in windows of one fixed length, each document apart from its neighbours.

Apart means: positions restart at 0 in each, from which transformers builds a block-diagonal causal mask (when it
gets no attention mask and no cache), and no label asks one document's last token for the next one's first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from aegis.data.chat import Example
from aegis.data.order import permutation

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
    first_token[p] to first_token[p + 1].
    """

    max_length: int
    pad_token_id: int
    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    first_token: NDArray[np.int64]
    first_piece: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first_piece) - 1

    @cached_property
    def trained_per_window(self) -> NDArray[np.int64]:
        """How many labels of each window are not IGNORED."""
        return np.add.reduceat(self.trained, self.first_token[self.first_piece[:-1]], dtype=np.int64)

    @property
    def trained_tokens(self) -> int:
        """How many labels are not IGNORED."""
        return int(self.trained.sum())

    def batch(self, indices: Sequence[int]) -> Batch:
        """The windows of these numbers, one a row. Padding is one more document, nothing of it learnt."""
        shape = (len(indices), self.max_length)
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels = np.full(shape, IGNORED, dtype=np.int64)
        position_ids = np.empty(shape, dtype=np.int64)
        document_ids = np.empty(shape, dtype=np.int64)
        for row, window in enumerate(indices):
            pieces = self.first_token[self.first_piece[window] : self.first_piece[window + 1] + 1]
            length = int(pieces[-1] - pieces[0])
            tokens = self.tokens[pieces[0] : pieces[-1]]
            input_ids[row, :length] = tokens
            labels[row, :length] = np.where(self.trained[pieces[0] : pieces[-1]], tokens, IGNORED)
            edges = [*(pieces - pieces[0]).tolist(), self.max_length]
            for document, (start, end) in enumerate(pairwise(edges)):
                position_ids[row, start:end] = np.arange(end - start)
                document_ids[row, start:end] = document
        return Batch(input_ids, labels, position_ids, document_ids)


class Pieces(Sequence[Example]):
    """Examples kept flat: five bytes a token and eight a piece, where an object for each would take hundreds."""

    def __init__(self) -> None:
        self._tokens = array("i")
        self._trained = bytearray()
        self._ends = array("q", [0])

    def append(self, piece: Example) -> None:
        self._tokens.frombytes(piece.ids.tobytes())
        self._trained += piece.trained.tobytes()
        self._ends.append(len(self._tokens))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def lengths(self) -> NDArray[np.int64]:
        """Of each piece, in tokens."""
        ends = np.frombuffer(self._ends, np.int64)
        return ends[1:] - ends[:-1]

    @overload
    def __getitem__(self, number: int) -> Example: ...

    @overload
    def __getitem__(self, number: slice) -> list[Example]: ...

    def __getitem__(self, number: int | slice) -> Example | list[Example]:
        """Views, which hold the whole: take them once everything is appended. That it was a document is forgotten."""
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        start, count = self._ends[number], self._ends[number + 1] - self._ends[number]
        ids = np.frombuffer(self._tokens, np.int32, count, 4 * start)
        return Example(ids, np.frombuffer(self._trained, np.bool_, count, start), False)


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
    pieces: Sequence[Example],
    *,
    max_length: int,
    packing: bool,
    seed: int,
    pad_token_id: int,
    chosen: Sequence[int] | NDArray[np.int64] | None = None,
) -> Windows:
    """Put pieces of at most `max_length` tokens into windows; without `packing`, one in each.

    Args:
        chosen: the numbers of the pieces to take; all if None.
    """
    numbers = np.arange(len(pieces)) if chosen is None else np.asarray(chosen, dtype=np.int64)
    lengths = _lengths(pieces)[numbers]
    order, first_piece = np.arange(len(numbers)), np.arange(len(numbers) + 1)
    if packing:
        order, first_piece = _best_fit(lengths, max_length, seed)
    first_token = np.zeros(len(numbers) + 1, dtype=np.int64)
    np.cumsum(lengths[order], out=first_token[1:])
    tokens = np.empty(first_token[-1], dtype=np.int32)
    trained = np.empty(first_token[-1], dtype=np.bool_)
    for place, start in zip(order, first_token[:-1], strict=True):
        ids, learnt, _ = pieces[int(numbers[place])]
        tokens[start : start + len(ids)] = ids
        trained[start : start + len(ids)] = learnt
    return Windows(max_length, pad_token_id, tokens, trained, first_token, first_piece)


def _lengths(pieces: Sequence[Example]) -> NDArray[np.int64]:
    if isinstance(pieces, Pieces):
        return pieces.lengths()
    return np.array([len(piece.ids) for piece in pieces], dtype=np.int64)


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
    return np.array(order, np.int64), np.array(first_piece, np.int64)
