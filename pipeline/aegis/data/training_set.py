"""Loads the training and held-out windows of a config, for every stage from the same cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from aegis.config.presets import DEMO
from aegis.config.train_settings import TrainConfig
from aegis.data.chat import Encoder
from aegis.data.dataset import Prepared, prepare
from aegis.data.example import Encoded
from aegis.data.formats import records
from aegis.data.packing import Windows
from aegis.data.questions import Question, heldout_questions
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import DataError
from aegis.runs import disk


def load_training_set(config: TrainConfig, tokenizer: Any, *, keep: bool = True) -> Prepared:
    """Read, encode and pack the data set that a config names.

    Args:
        keep: keep the result in the cache; without it, nothing is written.

    Raises:
        UsageError, DataError, EnvironmentFault: as in `prepare`.
    """
    with _source(config.dataset, keep) as source:
        return prepare(
            source,
            tokenizer,
            max_length=config.max_length,
            packing=config.packing,
            seed=config.seed,
            heldout_rows=config.heldout_rows,
            skip_bad=config.skip_bad,
            columns=config.columns,
            fold_system=config.fold_system,
            cache_dir=disk.cache_directory() / "data" if keep else None,
        )


def first_rows(config: TrainConfig, tokenizer: Any, count: int, *, keep: bool = True) -> list[Encoded]:
    """Encode the first `count` usable rows of a config's data set; unusable rows are skipped.

    Args:
        keep: as in `load_training_set`.

    Raises:
        UsageError, DataError, EnvironmentFault: as in `prepare`.
    """
    with _source(config.dataset, keep) as name:
        source = open_source(name)
        silent = Rejects(source.name)  # they are reported where the data is prepared
        encoder = Encoder(tokenizer, fold_system=config.fold_system)
        found: list[Encoded] = []
        rows = records(source, silent, config.columns)
        while len(found) < count and (batch := list(islice(rows, count - len(found)))):
            found += encoder.encode_texts(batch, silent)
        return found


def load_heldout_questions(config: TrainConfig, tokenizer: Any, data_sha256: str, count: int) -> list[str]:
    """Return questions from the chats that a config's training held out; none if there are no such chats.

    Args:
        data_sha256: the hash of the training's data.

    Raises:
        DataError: the data has changed since.
        UsageError, EnvironmentFault: as in `load_training_set`.
    """
    prepared = load_training_set(config, tokenizer)
    if prepared.report.content_sha256 != data_sha256:
        raise DataError("material.changed")
    if prepared.heldout is None:
        return []
    found = find_heldout_questions(config, tokenizer, prepared.heldout, count)
    return [question.text for question in found if question.is_chat]


def find_heldout_questions(
    config: TrainConfig,
    tokenizer: Any,
    heldout: Windows,
    count: int,
    expired: Callable[[], bool] = lambda: False,
) -> list[Question]:
    """Return questions, with the data's answers, of the rows in the held-out windows of a config.

    Args:
        expired: as in `heldout_questions`.

    Raises:
        UsageError, DataError, EnvironmentFault: as in `load_training_set`.
    """
    with _source(config.dataset, keep=True) as name:
        encoder = Encoder(tokenizer, fold_system=config.fold_system)
        return heldout_questions(open_source(name), encoder, heldout, count, config.columns, expired)


@contextmanager
def _source(name: str, keep: bool) -> Iterator[str]:
    if name != DEMO:
        yield name
        return
    from aegis.demo.corpus import write_demo_dataset

    with TemporaryDirectory(prefix="aegis-data-") as scratch:
        path = (disk.cache_directory() if keep else Path(scratch)) / "demo-dataset.jsonl"
        # several processes may write it at once
        part = path.with_suffix(f".{os.getpid()}")
        write_demo_dataset(part)
        part.replace(path)
        yield str(path)
