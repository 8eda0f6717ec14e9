"""Examples side by side in windows of one fixed length, each document apart from its neighbours.

Apart means: positions restart at 0 in each, from which transformers builds a block-diagonal causal mask (when it
gets no attention mask and no cache), and no label asks one document's last token for the next one's first.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
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
        before = np.concatenate([[0], np.cumsum(self.trained)])
        return np.diff(before[self.first_token[self.first_piece]])

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
    chosen: Sequence[int] | None = None,
) -> Windows:
    """Put pieces of at most `max_length` tokens into windows; without `packing`, one in each.

    Args:
        chosen: the numbers of the pieces to take; all if None.
    """
    numbers = range(len(pieces)) if chosen is None else chosen
    lengths = [len(pieces[number].ids) for number in numbers]
    groups: Iterable[list[int]] = [[place] for place in range(len(numbers))]
    if packing:
        groups = _best_fit(lengths, max_length, seed)
    order: list[int] = []
    first_piece = [0]
    for group in groups:
        order += group
        first_piece.append(len(order))
    first_token = np.cumsum([0, *(lengths[place] for place in order)], dtype=np.int64)
    tokens = np.empty(first_token[-1], dtype=np.int32)
    trained = np.empty(first_token[-1], dtype=np.bool_)
    for place, start in zip(order, first_token.tolist(), strict=False):
        ids, learnt, _ = pieces[numbers[place]]
        tokens[start : start + len(ids)] = ids
        trained[start : start + len(ids)] = learnt
    return Windows(max_length, pad_token_id, tokens, trained, first_token, np.array(first_piece, dtype=np.int64))


def _best_fit(lengths: Sequence[int], max_length: int, seed: int) -> list[list[int]]:
    """Best-fit decreasing, a shuffled buffer at a time, so that neighbours in the file do not stay neighbours."""
    shuffled = permutation(len(lengths), seed, 0).tolist()
    windows: list[list[int]] = []
    for start in range(0, len(shuffled), _BUFFER):
        room: list[tuple[int, int]] = []  # (tokens free, window), the fullest window first
        for number in sorted(shuffled[start : start + _BUFFER], key=lambda number: -lengths[number]):
            length = lengths[number]
            place = bisect_left(room, (length, 0))
            if place < len(room):
                free, window = room.pop(place)
                windows[window].append(number)
            else:
                free, window = max_length, len(windows)
                windows.append([number])
            if free > length:
                insort(room, (free - length, window))
    return windows
