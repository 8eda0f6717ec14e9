"""The windows a config trains on: the same call, from the same cache, wherever they are wanted."""

from __future__ import annotations

import os
from typing import Any

from aegis import disk
from aegis.config import DEMO, TrainConfig
from aegis.data.dataset import Prepared, prepare


def training_data(config: TrainConfig, tokenizer: Any) -> Prepared:
    """Read, encode and pack the data set a config names.

    Raises:
        UsageError, DataError, EnvironmentFault: as `prepare` does.
    """
    return prepare(
        _source(config.dataset),
        tokenizer,
        max_length=config.max_length,
        packing=config.packing,
        seed=config.seed,
        heldout_rows=config.heldout_rows,
        skip_bad=config.skip_bad,
        cache_dir=disk.cache_directory() / "data",
    )


def _source(name: str) -> str:
    if name != DEMO:
        return name
    from aegis.demo.corpus import write_demo_dataset

    path = disk.cache_directory() / "demo-dataset.jsonl"
    # several processes may do so at once
    part = path.with_suffix(f".{os.getpid()}")
    write_demo_dataset(part)
    part.replace(path)
    return str(path)
