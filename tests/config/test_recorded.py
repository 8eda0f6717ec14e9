"""Tests of settings that are read back from a manifest: as they were recorded, or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config.recorded import recorded_config
from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.stage_config import StageConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import IntegrityError
from aegis.runs.manifest import Manifest

KINDS: list[type[StageConfig]] = [TrainConfig, MergeConfig, ExportConfig]


def manifest(config: dict[str, object]) -> Manifest:
    return Manifest("train", config, {}, {}, path=Path("run/adapter/manifest.json"))


@pytest.mark.parametrize(
    ("kind", "newer", "always"),
    [(TrainConfig, "fold_system", "load_in"), (MergeConfig, None, "dtype"), (ExportConfig, "system", "quant")],
)
def test_recorded_settings_are_read_back(kind: type[StageConfig], newer: str | None, always: str) -> None:
    """Those of a manifest that lacks a newer setting too, but none without one that every version has recorded."""
    config = kind().model_dump(mode="json")
    assert recorded_config(manifest(config), kind) == kind()
    config.pop(newer, None)
    assert recorded_config(manifest(config), kind) == kind()
    del config[always]
    with pytest.raises(IntegrityError) as caught:
        recorded_config(manifest(config), kind)
    assert (caught.value.key, always in caught.value.why) == ("manifest.damaged", True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_setting_that_cannot_have_been_recorded_is_named(kind: type[StageConfig]) -> None:
    """A value of another type, and a setting that this version does not know."""
    config = kind().model_dump(mode="json")
    for name in (*config, "unheard_of"):
        with pytest.raises(IntegrityError) as caught:
            recorded_config(manifest(config | {name: {"x": [1]}}), kind)
        assert caught.value.key == "manifest.damaged"
        assert f"config.{name}" in caught.value.why
        assert "adapter/manifest.json" in caught.value.what
        assert caught.value.fix


def test_settings_that_stand_elsewhere_in_the_manifest_are_read_with_it() -> None:
    """The recorded ones come first, and the others are checked too."""
    recorded = manifest(TrainConfig().model_dump(mode="json", exclude={"save_steps"}) | {"seed": 3})
    found = recorded_config(recorded, TrainConfig, {"save_steps": 7, "seed": 4})
    assert (found.save_steps, found.seed) == (7, 3)
    with pytest.raises(IntegrityError, match=r"config\.save_steps"):
        recorded_config(recorded, TrainConfig, {"save_steps": "x"})
