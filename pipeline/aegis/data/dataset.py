"""Prepares a data set for the training loop: training windows, held-out windows and a report."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aegis import progress
from aegis.data import cache
from aegis.data.chat import Encoder
from aegis.data.example import Example
from aegis.data.formats import records
from aegis.data.heldout_rows import pieces_of, row_key
from aegis.data.heldout_rows import split as split_rows
from aegis.data.lengths import Lengths
from aegis.data.packing import Pieces, Windows, cut, pack
from aegis.data.rejects import Rejects
from aegis.data.report import DataReport
from aegis.data.sources import Source, open_source
from aegis.errors import DataError
from aegis.messages import phrase

_BATCH_ROWS = 256
_ROW_RULES = 2
"""Grows when other rows are refused than before, so that no result from before is used."""


class _Options(NamedTuple):
    """The arguments of `prepare` that its result depends on."""

    max_length: int
    packing: bool
    seed: int
    heldout_rows: int
    skip_bad: int
    columns: tuple[str, ...]
    fold_system: bool


@dataclass(frozen=True)
class Prepared:
    """The windows and the report of a data set; `heldout` is None if nothing was held out."""

    train: Windows
    heldout: Windows | None
    report: DataReport


def prepare(
    source: str | Path,
    tokenizer: Any,
    *,
    max_length: int = 512,
    packing: bool = True,
    seed: int = 0,
    heldout_rows: int = 0,
    skip_bad: int = 0,
    columns: Sequence[str] = (),
    fold_system: bool = False,
    cache_dir: Path | None = None,
) -> Prepared:
    """Read, check, encode, split and pack a dataset. The same input gives the same windows.

    Args:
        source: a file, or a Hub dataset's id.
        tokenizer: a fast transformers tokenizer, loaded from the base's own folder.
        max_length: tokens per window.
        packing: put several rows into a window; otherwise each window has one row and padding.
        seed: the seed of the packing and of the choice of held-out rows.
        heldout_rows: number of rows to hold out, at most a tenth of the distinct ones. They are chosen by content, and
            their duplicates are not trained either.
        skip_bad: maximum number of unusable rows to leave out with a warning; one more is an error.
        columns: the user's names for keys, such as `question=instruction` or `notes=ignore`.
        fold_system: if the chat template has no system message, put it before the first question.
        cache_dir: folder to keep the result in, under a hash of all that it depends on; None keeps nothing.

    Raises:
        DataError: rows cannot be used, the dataset is empty, no token is trained, or it changed while it was read.
        UsageError: there is no such dataset.
    """
    options = _Options(max_length, packing, seed, heldout_rows, skip_bad, tuple(columns), fold_system)
    opened = open_source(source)
    digest = opened.sha256()
    path = cache_dir / f"{_cache_key(digest, tokenizer, options)}.windows" if cache_dir else None
    prepared = _cached(path, opened.name) if path else None
    if prepared is None:
        prepared = _prepare(opened, digest, tokenizer, options, cache_dir)
        if path:
            cache.store(path, _named(prepared), asdict(prepared.report))
    prepared.report.warn(max_length)
    return prepared


class _Encoded(NamedTuple):
    """All rows of a source, in its order.

    Attributes:
        keys: the key of each row that has a piece.
        first_piece: the number of each row's first piece, and then the number of all pieces.
        dropped: number of rows without a trained token.
    """

    pieces: Pieces
    keys: array[int]
    first_piece: array[int]
    lengths: Lengths
    dropped: int


def _encode(examples: Iterable[Example], options: _Options, folder: Path | None) -> _Encoded:
    pieces, lengths, dropped = Pieces(folder=folder), Lengths(options.max_length), 0
    keys, first_piece = array("Q"), array("q", [0])
    for example in examples:
        of_row = cut(example, options.max_length)
        lengths.count(example)
        dropped += not of_row
        if of_row:
            keys.append(row_key(of_row, options.seed))
            for piece in of_row:
                pieces.append(piece)
            first_piece.append(len(pieces))
    return _Encoded(pieces, keys, first_piece, lengths, dropped)


def _prepare(source: Source, digest: str, tokenizer: Any, options: _Options, folder: Path | None) -> Prepared:
    rejects = Rejects(source.name, options.skip_bad)
    encoder = Encoder(tokenizer, fold_system=options.fold_system)
    left_out = set[str]()
    examples = _examples(source, encoder, rejects, options, left_out)
    pieces, keys, first_piece, lengths, dropped = _encode(examples, options, folder)
    rejects.check(usable=len(keys) + dropped)
    if not keys:
        raise _nothing_to_learn(source.name, dropped)

    train, heldout = split_rows(np.frombuffer(keys, np.uint64), options.heldout_rows)
    into_windows = partial(
        pack,
        pieces,
        max_length=options.max_length,
        packing=options.packing,
        seed=options.seed,
        pad_token_id=_padding(tokenizer),
        folder=folder,
    )
    pieces_of_rows = partial(pieces_of, first_piece=np.frombuffer(first_piece, np.int64))
    windows = into_windows(chosen=pieces_of_rows(train))
    heldout_windows = into_windows(chosen=pieces_of_rows(heldout)) if len(heldout) else None
    report = DataReport(
        source=source.name,
        content_sha256=digest,
        rows=len(keys),
        train_rows=len(train),
        heldout_rows=len(heldout),
        duplicates_of_heldout=len(keys) - len(train) - len(heldout),
        truncated=lengths.too_long,
        dropped=dropped,
        tokens=len(windows.tokens),
        trained_tokens=windows.trained_tokens,
        windows=len(windows),
        heldout_windows=len(heldout_windows or ()),
        pad_token_id=windows.pad_token_id,
        cut_tokens=lengths.cut_tokens,
        fitting_length=lengths.fitting(0.95),
        lost_thoughts=encoder.lost_thoughts,
        unopened=encoder.unopened,
        skipped=rejects.listed,
        left_out=sorted(left_out),
    )
    return Prepared(windows, heldout_windows, report)


def _examples(
    source: Source, encoder: Encoder, rejects: Rejects, options: _Options, left_out: set[str]
) -> Iterator[Example]:
    """Encode in batches, because a fast tokenizer is fast only in batches, and advance the progress bar."""
    rows = records(source, rejects, options.columns, left_out)
    done = 0.0
    with progress.task(phrase("dataset.reading"), total=source.total, unit=source.unit) as bar:
        while batch := list(islice(rows, _BATCH_ROWS)):
            yield from encoder.encode(batch, rejects)
            bar.advance(source.position - done)
            done = source.position


def _nothing_to_learn(name: str, dropped: int) -> DataError:
    if dropped:
        return DataError("dataset.nothing_to_learn", name=name, dropped=dropped)
    return DataError("dataset.empty", name=name)


def _padding(tokenizer: Any) -> int:
    """Return a padding token; any one works, because padding is never trained and no document attends to it."""
    for name in ("pad_token_id", "eos_token_id"):
        token_id = getattr(tokenizer, name)
        if token_id is not None:
            return int(token_id)
    return 0


def _cache_key(digest: str, tokenizer: Any, options: _Options) -> str:
    parts = [
        cache.FORMAT,
        _ROW_RULES,
        digest,
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer("a").input_ids,
        options,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _named(prepared: Prepared) -> dict[str, Windows]:
    windows = {"train": prepared.train}
    return windows if prepared.heldout is None else windows | {"heldout": prepared.heldout}


def _cached(path: Path, name: str) -> Prepared | None:
    """Load the result at `path`; None if it is missing or damaged. The same data may have another name now."""
    found = cache.load(path)
    if found is None:
        return None
    windows, values = found
    values["source"] = name
    values["skipped"] = [(where, reason) for where, reason in values["skipped"]]
    return Prepared(windows["train"], windows.get("heldout"), DataReport(**values))
