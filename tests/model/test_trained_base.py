"""Tests of the base that a run's adapter was trained on: it is found again, or its place is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.errors import UsageError
from aegis.model.trained_base import trained_base
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from tests.recorded import train_facts


def adapter_on(base: str, folder: Path) -> Path:
    with publishing(folder, Manifest("train", {}, {}, train_facts(base_model=base))):
        pass
    return folder


def test_the_folder_that_a_run_was_trained_on_is_found_again(quick_base: Path, tmp_path: Path) -> None:
    assert trained_base(adapter_on(str(quick_base), tmp_path / "adapter")).folder == quick_base


@pytest.mark.parametrize("base", ["moved/base", "x" * 300])
def test_a_folder_that_is_not_there_any_more_is_named(tmp_path: Path, base: str) -> None:
    """A run may come from somebody else, with any name in its manifest."""
    with pytest.raises(UsageError) as caught:
        trained_base(adapter_on(base, tmp_path / "adapter"))
    assert caught.value.key == "base.moved"
    assert base in str(caught.value)
