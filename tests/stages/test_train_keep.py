"""Tests of train with keep: a run has its kept text, and resumes with that text only."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.config.train_settings import TrainConfig
from aegis.data import kept
from aegis.errors import IntegrityError, Interrupted, UsageError
from aegis.runs.facts import AdapterFacts
from aegis.runs.manifest import read_manifest, verify_directory
from aegis.runs.run import Run
from aegis.stages import train as stage
from aegis.stages.train import train
from aegis.training.keep import sources
from aegis.training.step import Stepper
from tests.trained import small_training, train_until_killed, write_chats

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture
def config(quick_base: Path, tmp_path: Path, cache: Path) -> TrainConfig:
    short = small_training(quick_base, write_chats(tmp_path / "data.jsonl"))
    return short.model_copy(update={"max_steps": 4, "annealing_steps": 2})


def test_a_run_has_its_kept_text_and_the_held_out_windows(tmp_path: Path, config: TrainConfig, cache: Path) -> None:
    """Without the cache too; damaged, it is refused. The rows and the manifest have the divergence."""
    run = Run(tmp_path / "run")
    report = train(config, run)
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    # accumulating two micro-batches a step, every third one brings a kept pass: in steps 0, 1 and 3
    assert [row["keep_kl"] is None for row in rows] == [False, False, True, False]
    assert rows[0]["keep_kl"] < 0.05
    assert report.keep_kl == rows[-1]["keep_kl"]
    assert rows[1]["loss"] == pytest.approx(rows[1]["task_loss"] + rows[1]["keep_kl"], abs=1e-4)
    facts = AdapterFacts.read(run.adapter)
    assert facts.result.keep_kl == report.keep_kl
    assert facts.kept is not None
    assert (facts.kept.source, facts.kept.windows, facts.kept.heldout_windows) == ("written", 7, 1)

    (cached,) = (cache / "kept").glob("*.windows")
    wanted = kept.load(cached)
    assert wanted is not None
    assert read_manifest(run.adapter).inputs["kept"] == wanted.sha256
    shutil.rmtree(cache / "kept")
    found = kept.heldout_of(run)
    assert found is not None
    assert np.array_equal(found.batch([0]).input_ids, wanted.heldout.batch([0]).input_ids)
    assert train(config, run, reuse=True).keep_kl == report.keep_kl

    path = run.kept / kept.FILE_NAME
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        kept.heldout_of(run)


def test_other_kept_text_is_refused_with_the_difference(
    tmp_path: Path, config: TrainConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed training resumes with its first kept text, from the run if the cache is gone."""
    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    shutil.rmtree(cache / "kept")
    aside = tmp_path / "aside"
    with monkeypatch.context() as patch:
        patch.setattr(sources, "_SEED", 3)
        run.kept.rename(aside)
        with pytest.raises(UsageError, match="hash of the kept"):
            train(config, run)
        with pytest.raises(UsageError, match=r"keep_weight: 1\.0 → 0\.5"):
            train(config.model_copy(update={"keep_weight": 0.5}), run)
        aside.rename(run.kept)
        shutil.rmtree(cache / "kept")
        assert train(config, run).resumed_from == 2
    assert verify_directory(run.kept).inputs == read_manifest(run.adapter).inputs


def row_values(run: Run) -> dict[int, float | None]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return {row["step"]: row["keep_kl"] for row in rows}


@pytest.mark.parametrize(("logging_steps", "last_row_has_it"), [(3, True), (4, False)])
def test_the_recorded_divergence_depends_on_the_steps_alone(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, logging_steps: int, last_row_has_it: bool
) -> None:
    """It is that of the last step with kept text, wherever the rows end: the control has a row per step."""
    config = config.model_copy(update={"max_steps": 9, "save_steps": 9})
    every, whole, interrupted = (Run(tmp_path / name) for name in ("every", "whole", "interrupted"))
    train(config, every)
    values = row_values(every)
    assert [step for step, value in values.items() if value is None] == [3, 6, 9]
    assert len({values[step] for step in (5, 7, 8)}) == 3
    config = config.model_copy(update={"logging_steps": logging_steps})
    report = train(config, whole)
    assert (row_values(whole)[9] is not None) == last_row_has_it
    launch = Stepper.launch

    def signalled(self: Any, step: int, *arguments: Any) -> Any:
        if step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return launch(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "launch", signalled)
        with pytest.raises(Interrupted, match="stopped after step 7"):
            train(config, interrupted)
    assert train(config, interrupted).resumed_from == 7
    for run in (every, whole, interrupted):
        assert AdapterFacts.read(run.adapter).result.keep_kl == values[8]
    assert report.keep_kl == train(config, interrupted, reuse=True).keep_kl == values[8]


def test_the_recorded_divergence_is_that_of_the_chosen_checkpoint(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With keep_best, later steps do not count."""
    monkeypatch.setattr(stage, "_best_step", lambda *_: 3)
    run = Run(tmp_path / "run")
    report = train(config.model_copy(update={"save_steps": 3, "keep_best": True}), run)
    values = row_values(run)
    assert report.steps == 3
    assert values[3] is None
    assert report.keep_kl == values[2] != values[4]


def test_a_run_with_keep_switched_off_has_no_kept_text(tmp_path: Path, config: TrainConfig, cache: Path) -> None:
    run = Run(tmp_path / "run")
    report = train(config.model_copy(update={"keep_weight": 0.0}), run)
    assert report.keep_kl is None
    assert not run.kept.exists()
    assert not (cache / "kept").exists()
    assert kept.heldout_of(run) is None
    assert "kept" not in read_manifest(run.adapter).inputs
