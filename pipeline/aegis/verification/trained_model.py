"""Loads the model as it was in memory when its training ended."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.merging.merged_weights import DTYPES, counter_scaled
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights
from aegis.model.base import Base
from aegis.model.live_model import live_model, soul_module
from aegis.model.load import Precision, compute_dtype
from aegis.runs.facts import AdapterFacts
from aegis.runs.manifest import Manifest
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul


@contextmanager
def trained_model(
    base: Base, adapter: Path, trained: Manifest, merged_dtype: str, device: torch.device
) -> Iterator[Any]:
    """Yield the base with adapter and soul: in training's precision or, after a finish, with the file's weights.

    Args:
        trained: the manifest of train.
        merged_dtype: the dtype of the merged folder.
    """
    finish = AdapterFacts.of(trained).finish
    precision: Precision = "16bit" if finish else recorded_config(trained, TrainConfig).load_in
    with live_model(base, adapter, precision, device) as model:
        if finish is not None:
            record = load_soul(adapter / SOUL_FILE)
            scaled = counter_scaled(base, record.counter_scale)
            recipe = FileRecipe(finish.quant, finish.types, DTYPES[merged_dtype], scaled)
            ShippedWeights(model, soul_module(record).to(device), base, recipe, compute_dtype(device))
        yield model
