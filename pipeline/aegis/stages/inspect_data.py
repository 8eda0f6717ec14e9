"""data: shows what a training makes of its rows, and the first rows with their masks; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from aegis.config.presets import DEMO
from aegis.config.train_settings import TrainConfig
from aegis.data.epochs import passes, with_steps
from aegis.data.example import Encoded
from aegis.data.report import DataReport
from aegis.data.training_set import first_rows, load_training_set
from aegis.model.base import Base, find_base, peek_base
from aegis.model.trained_base import with_template

_LISTED = 20
"""Maximum number of listed unusable rows; a training may stop at the first."""


@dataclass(frozen=True)
class RowView:
    """One row as the model sees it.

    Attributes:
        where: the row's position in its file.
        parts: texts in order, each with whether it is trained on.
    """

    where: str
    tokens: int
    trained_tokens: int
    parts: tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class DataView:
    """The result of preparing a data set.

    Attributes:
        report: the report on the rows.
        rows: the first rows.
        max_length: tokens per window.
        steps, passes: optimizer steps of the training, and how often it sees the data.
        too_many_bad: whether a training would refuse the data because of its unusable rows.
    """

    report: DataReport
    rows: tuple[RowView, ...]
    max_length: int
    steps: int
    passes: float
    too_many_bad: bool


def inspect_data(config: TrainConfig, count: int) -> DataView:
    """Read the config's data, warn of what is left out, cut or changed, and encode the first rows.

    Args:
        count: number of rows to encode.

    Raises:
        UsageError, EnvironmentFault, UnsupportedModelError, IntegrityError: as in `peek_base`.
        DataError: more than 20 rows cannot be used and more than `skip_bad`, or none can.
    """
    with _base(config) as found:
        tokenizer = with_template(found, config.chat_template).tokenizer()
        lenient = config.model_copy(update={"skip_bad": max(config.skip_bad, _LISTED)})
        report = load_training_set(lenient, tokenizer, keep=False).report
        config = with_steps(config, report.windows)
        rows = [_view(row, tokenizer) for row in first_rows(config, tokenizer, count, keep=False)]
        if config.dataset == DEMO:  # whose rows were in a temporary file, of a name that says nothing
            report = replace(report, source=DEMO)
            rows = [replace(row, where=f"{DEMO}:{row.where.rpartition(':')[2]}") for row in rows]
        return DataView(
            report=report,
            rows=tuple(rows),
            max_length=config.max_length,
            steps=config.max_steps,
            passes=passes(config, report.windows),
            too_many_bad=len(report.skipped) > config.skip_bad,
        )


@contextmanager
def _base(config: TrainConfig) -> Iterator[Base]:
    if config.base_model == DEMO:  # before it is made, it has no tokenizer to look at
        yield find_base(DEMO)
        return
    with peek_base(config.base_model, config.revision) as base:
        yield base


def _view(row: Encoded, tokenizer: Any) -> RowView:
    ids, trained = row.example.ids.tolist(), row.example.trained.tolist()
    runs = groupby(zip(ids, trained, strict=True), key=lambda pair: pair[1])
    parts = tuple((tokenizer.decode([token for token, _ in run]), is_trained) for is_trained, run in runs)
    return RowView(row.where, len(ids), sum(trained), parts)
