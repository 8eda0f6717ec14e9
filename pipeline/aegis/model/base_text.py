"""Lets a base write text: sampled in batches at temperature 1, with a static cache.

A chat base begins at the user's turn of its template: it writes the question, the template's own tokens follow, and it
writes the answer. A base's own samples show what its training left in it; no other text is known to do so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aegis.data.kept import MIN_TOKENS, missing_tokens
from aegis.model.cuda_graphs import own_stream
from aegis.model.decoder import Decoder
from aegis.model.device import free_bytes
from aegis.model.text_openings import Opening, end_tokens

_MAX_TOKENS = 1024
"""Maximum tokens of one text: longer windows hold several texts, and the cache stays small."""
_CHECK_EVERY = 16
"""Tokens between two checks on the device whether all texts have ended."""
_MIN_DOCUMENT = 32
"""Minimum tokens of a document without questions: some bases open with a fixed line and end there."""
_MAX_PERIOD, _REPEATS, _MIN_LOOP = 64, 4, 32
"""A loop: a piece of at most _MAX_PERIOD tokens, repeated _REPEATS times, at least _MIN_LOOP tokens in all."""
_MIN_BATCH, _BATCH_CPU, _BATCH_GPU = 8, 64, 192
_TRIES = 8
"""Sampled tokens per requested token before a base that writes too little is given up."""


@dataclass
class WrittenTexts:
    """Texts as token ids, and counts of all sampled texts: ended, cut at a loop, dropped as too short."""

    texts: list[NDArray[np.int32]] = field(default_factory=list)
    sampled: int = 0
    ended: int = 0
    looping: int = 0
    too_short: int = 0

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    def missing(self, windows: int, max_length: int) -> int:
        """Return how many tokens are missing to fill `windows` windows."""
        return missing_tokens([len(text) for text in self.texts], windows, max_length)


def write_texts(
    model: Any, tokenizer: Any, opening: Opening, *, windows: int, max_length: int, seed: int
) -> Iterator[WrittenTexts]:
    """Let the base write until its texts fill `windows` windows, or too many samples were of no use.

    Args:
        model: the base, frozen, on its device.
        max_length: tokens per window; a text has at most 1,024.
        seed: the sampling's seed; the same seed, batch and device give the same text.

    Yields:
        The same object after each batch, with all texts so far.
    """
    length = max(len(opening.ids) + 1, min(max_length, _MAX_TOKENS))
    generator = torch.Generator(model.device).manual_seed(seed)
    written, seen, spent = WrittenTexts(), set[bytes](), 0
    max_rows = _batch_rows(model, length)
    while (missing := written.missing(windows, max_length)) and spent < _TRIES * windows * max_length + length:
        # estimate by the mean length so far; a few rows more cost hardly any time, and another batch does
        typical = max(MIN_TOKENS, written.tokens // written.sampled if written.sampled else length // 2)
        rows = min(max_rows, max(_MIN_BATCH, math.ceil(missing / typical)))
        for text, ended in sample(
            model,
            opening,
            rows=rows,
            length=length,
            ends=end_tokens(model, tokenizer),
            known=len(tokenizer),
            generator=generator,
        ):
            spent += length
            written.sampled += 1
            written.ended += ended
            cut = without_loop(text)
            written.looping += len(cut) < len(text)
            if len(cut) - len(opening.ids) < min(MIN_TOKENS, length // 2) or cut.tobytes() in seen:
                written.too_short += 1
                continue
            seen.add(cut.tobytes())
            written.texts.append(cut)
        yield written


def _batch_rows(model: Any, length: int) -> int:
    """Return the texts per batch: keys, values and logits take at most half the free memory."""
    if model.device.type != "cuda":
        return _BATCH_CPU
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    row = text.num_hidden_layers * 2 * heads * width * model.dtype.itemsize * length + 16 * text.vocab_size
    return int(min(_BATCH_GPU, max(1, free_bytes(model.device) // 2 // row)))


@torch.no_grad()
def sample(
    model: Any,
    opening: Opening,
    *,
    rows: int,
    length: int,
    ends: frozenset[int],
    known: int,
    generator: torch.Generator,
) -> list[tuple[NDArray[np.int32], bool]]:
    """Sample a batch of `rows` texts of at most `length` tokens at temperature 1.

    Args:
        ends: tokens that end a question or a text.
        known: number of ids that have a token; larger ids are never sampled.

    Returns:
        Each text with its opening, and whether the base ended it; then its last token is the end token.
    """
    device, start = model.device, len(opening.ids)
    with own_stream(device):
        decoder = Decoder(model, rows, length, record=True)
        state = _Rows(opening, rows, length, ends, device)
        following = state.ids[:, :start]
        for position in range(start, length):
            wide = decoder(following).float()
            wide[:, known:] = -math.inf
            # the argmax of p / e, with exponential e, is a sample from p; it does not make the host wait for the device
            chance = wide.softmax(-1)
            drawn = (chance / torch.empty_like(chance).exponential_(generator=generator)).argmax(-1)
            following = state.put(position, drawn).unsqueeze(1)
            if position % _CHECK_EVERY == 0 and bool(state.ended.all()):
                break
        return state.texts()


class _Rows:
    """The texts of a batch while they are sampled: each row's tokens, and whether its question and text have ended."""

    def __init__(self, opening: Opening, rows: int, length: int, ends: frozenset[int], device: torch.device) -> None:
        self._start = len(opening.ids)
        self.ids = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.ids[:, : self._start] = torch.tensor(opening.ids, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=device)
        # one more entry, for rows that have no forced token to write
        self._follow = torch.tensor([*opening.follow, 0], device=device)
        self._count = len(opening.follow)
        self._next = torch.full((rows,), self._count, device=device)
        self._answering = torch.full((rows,), self._count == 0, device=device)
        self._lengths = torch.full((rows,), length, device=device)
        self._min_tokens = 0 if self._count else min(_MIN_DOCUMENT, length // 2)

    def put(self, position: int, drawn: Tensor) -> Tensor:
        """Write at `position` each row's drawn token, or the template's token if one is due; return the tokens."""
        waiting = self._next < self._count
        is_end = torch.isin(drawn, self._ends) & ~waiting
        question_ends = is_end & ~self._answering
        self._next = torch.where(question_ends, 0, self._next)
        self._answering = self._answering | question_ends
        forced = self._next < self._count
        token = torch.where(forced, self._follow[self._next], drawn)
        self._next = self._next + forced
        self.ids[:, position] = token
        if position - self._start >= self._min_tokens:
            ending = is_end & ~forced & ~self.ended
            self._lengths = torch.where(ending, position + 1, self._lengths)
            self.ended = self.ended | ending
        return token

    def texts(self) -> list[tuple[NDArray[np.int32], bool]]:
        ids, ended = self.ids.cpu().numpy().astype(np.int32), self.ended.tolist()
        return [(ids[row, :n], ended[row]) for row, n in enumerate(self._lengths.tolist())]


def without_loop(text: NDArray[np.int32]) -> NDArray[np.int32]:
    """Cut a text where it begins to repeat a piece many times; the piece stays once."""
    cut = len(text)
    for period in range(1, min(_MAX_PERIOD, len(text) // 2) + 1):
        same = np.flatnonzero(text[period:] != text[:-period])
        edges = np.concatenate([[-1], same, [len(text) - period]])
        runs = np.diff(edges) - 1
        long = np.flatnonzero(runs >= max(_MIN_LOOP, (_REPEATS - 1) * period))
        if len(long):
            cut = min(cut, int(edges[long[0]]) + 1 + period)
    return text[:cut]
