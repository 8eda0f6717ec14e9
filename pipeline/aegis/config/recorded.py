"""Reads a stage's settings back from the manifest that recorded them; a manifest that somebody damaged is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.messages import phrase
from aegis.runs.facts_base import damaged
from aegis.runs.manifest import Manifest

Config = TypeVar("Config", bound=StageConfig)

_ALWAYS: Mapping[type[StageConfig], tuple[str, ...]] = {
    TrainConfig: ("dataset", "load_in", "max_length", "max_steps", "batch_size", "gradient_accumulation_steps"),
    MergeConfig: ("dtype", "base_weights"),
    ExportConfig: ("quant", "keep_f16"),
}
"""Settings that every version has recorded; another one that is missing had its default when it was recorded."""


def recorded_config(manifest: Manifest, kind: type[Config], beside: Mapping[str, Any] | None = None) -> Config:
    """Return the settings that a manifest records.

    Args:
        kind: the class of the settings of the stage that wrote the manifest.
        beside: settings that stand elsewhere in the manifest; the recorded ones come first.

    Raises:
        IntegrityError: a setting is missing, unknown, or has a value that it cannot have.
        UsageError: a path names a user whom this machine does not have.
    """
    if lost := [name for name in _ALWAYS.get(kind, ()) if name not in manifest.config]:
        raise damaged(manifest, "config", phrase("manifest.missing", name=lost[0]))
    try:
        return kind.model_validate({**(beside or {}), **manifest.config})
    except ValidationError as error:
        raise damaged(manifest, "config", error) from None
