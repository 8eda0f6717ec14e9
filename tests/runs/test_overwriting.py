"""Tests that --overwrite names what it deletes before it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis import progress
from aegis.errors import UsageError
from aegis.runs.overwriting import announce, places_of_training, refuse_finished
from aegis.runs.run import Run


class Heard(progress.SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_every_folder_to_be_removed_is_named_with_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few files are named, of more only the number; without any, nothing is printed."""
    heard = Heard()
    monkeypatch.setattr(progress, "_reporter", heard)
    run = Run(tmp_path / "run")
    announce(places_of_training(run))
    assert heard.warnings == []
    for number in range(9):
        (run.checkpoints / f"step_{number:06}").mkdir(parents=True)
    run.metrics.write_text("{}\n")
    announce(places_of_training(run))
    (shown,) = heard.warnings
    assert "step_000000" in shown
    assert "step_000008" not in shown
    assert "(+3)" in shown
    assert str(run.metrics) in shown
    assert "adapter" not in shown


def test_an_adapter_of_unknown_origin_is_not_replaced_by_training(tmp_path: Path) -> None:
    """With --overwrite it is, and an empty run is nothing to refuse."""
    run = Run(tmp_path / "run")
    refuse_finished(run, overwrite=False)
    run.adapter.mkdir(parents=True)
    with pytest.raises(UsageError) as caught:
        refuse_finished(run, overwrite=False)
    assert caught.value.key == "publish.exists"
    refuse_finished(run, overwrite=True)
