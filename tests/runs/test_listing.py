"""Tests of the summary of each run in `aegis list`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aegis.cli.screens.runs import listed
from aegis.runs.facts import TrainResult
from aegis.runs.listing import summarized
from aegis.runs.manifest import Manifest, read_manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from tests.recorded import train_facts

RESULT = TrainResult(steps=30, heldout_loss=1.25, alpha=1.6, gate=0.8, trainable_parameters=9)


def publish(
    directory: Path, stage: str, inputs: dict[str, str], facts: dict[str, object], content: str = "x"
) -> Manifest:
    manifest = Manifest(stage=stage, config={}, inputs=inputs, facts=facts)
    with publishing(directory, manifest, overwrite=True) as staging:
        (staging.path / "file").write_text(content)
    return read_manifest(directory)


def test_a_run_is_recognized_by_its_files(tmp_path: Path) -> None:
    """From the first row of its metrics to the proof, which holds for the files that it was about and no others."""
    run = Run(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    assert (summarized(run).state, summarized(run).proof) == ("started", "none")
    rows = [{"step": 10, "heldout_loss": 1.5}, {"step": 20, "heldout_loss": None}]
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = summarized(run)
    assert (found.state, found.step, found.loss) == ("training", 20, 1.5)

    made = {"train": publish(run.adapter, "train", {}, train_facts(result=RESULT))}
    found = summarized(run)
    assert (found.state, found.step, found.loss) == ("trained", 30, 1.25)
    made["merge"] = publish(run.merged, "merge", {}, {})
    made["convert"] = publish(run.gguf, "export-gguf", {}, {})
    assert (summarized(run).state, summarized(run).proof) == ("exported", "none")
    parts = {stage: manifest.exact_identity for stage, manifest in made.items()}
    for ok, proof in ((True, "proven"), (False, "refuted")):
        publish(run.verify, "verify", parts, {"ok": ok})
        assert summarized(run).proof == proof
    publish(run.gguf, "export-gguf", {"model": "another"}, {})
    assert summarized(run).proof == "outdated"
    assert publish(run.gguf, "export-gguf", {}, {}, "y").identity == made["convert"].identity
    assert summarized(run).proof == "outdated", "another converter has made other bytes of the same inputs"
    publish(run.gguf, "export-gguf", {}, {})
    assert summarized(run).proof == "refuted"
    publish(run.verify, "verify", {stage: manifest.identity for stage, manifest in made.items()}, {"ok": True})
    assert summarized(run).proof == "outdated", "an older AEGIS did not record which bytes it had verified"
    publish(run.verify, "verify", parts, {"ok": True})
    (run.gguf / "manifest.json").write_text("{")
    assert summarized(run).proof == "damaged"
    assert summarized(run).bytes > 0


@pytest.mark.parametrize("value", ['"x"', "NaN", "-Infinity", "1e300", "9" * 400, "true", "[1]", "{}"])
def test_a_row_with_an_odd_number_costs_no_more_than_that_number(tmp_path: Path, value: str) -> None:
    """Its table has all runs."""
    run = Run(tmp_path)
    good = '{"step": 10, "heldout_loss": 1.5}\n'
    run.metrics.write_text(good + f'{{"step": 20, "heldout_loss": {value}}}\n{{"step": {value}}}\n')
    found = summarized(run)
    assert (found.step, found.loss) == (20, 1.5)
    assert "1.500" in listed([found], None)


def test_the_last_run_is_the_most_recently_used_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that is no run does not count."""
    monkeypatch.chdir(tmp_path)
    assert Run.known() == []
    for number, name in enumerate(("b", "a", "c")):
        root = Path("artifacts") / name
        (root / "checkpoints").mkdir(parents=True)
        os.utime(root, (1000 + number, 1000 + number))
    (Path("artifacts") / "pictures").mkdir()
    assert [run.root.name for run in Run.known()] == ["b", "a", "c"]


def test_a_run_that_is_being_prepared_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that its page can be opened before the first step; when it has refused its data, nothing is left."""
    monkeypatch.chdir(tmp_path)
    with Run(Path("artifacts") / "new").lock():
        assert [run.root.name for run in Run.known()] == ["new"]
    assert Run.known() == []


def test_a_file_that_vanishes_while_sizes_are_added_up_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training beside it removes checkpoints; the walk has their names already."""
    (tmp_path / "file").write_bytes(bytes(100))
    monkeypatch.setattr(os, "walk", lambda _: iter([(str(tmp_path), [], ["file", "removed"])]))
    assert summarized(Run(tmp_path)).bytes == 100
