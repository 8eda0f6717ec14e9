"""Tests of a training's rows in other trackers: read back with each tracker's reader, and refused early without it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from aegis.config.settings import TrainConfig
from aegis.errors import EnvironmentFault
from aegis.runs.run import Run
from aegis.stages.train import train
from aegis.training import tracking
from aegis.training.tracking import check_tracker, numbers_of
from tests.trained import small_training, write_chats


@pytest.fixture
def config(quick_base: Path, tmp_path: Path) -> TrainConfig:
    changed = {"max_steps": 4, "report_to": "tensorboard", "save_steps": 2}
    return small_training(quick_base, write_chats(tmp_path / "data.jsonl")).model_copy(update=changed)


def test_a_row_is_reported_as_numbers_under_flat_names() -> None:
    row = {"step": 3, "task_loss": 2.5, "heldout_loss": None, "phase": "golden", "skipped": False}
    assert numbers_of(row) == {"task_loss": 2.5, "skipped": 0.0}
    turned = numbers_of({"step": 3, "turned_degrees": [0, 1, 2, 3, 4, 5, 6]})
    assert turned == {"turned_degrees_median": 3, "turned_degrees_most": 6}


def test_a_missing_tracker_package_is_an_error_before_any_work(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda _name: None)
    check_tracker("none")
    with pytest.raises(EnvironmentFault, match="--report-to tensorboard needs a package") as caught:
        train(config, Run(tmp_path / "run"))
    assert caught.value.exit_code == 3
    assert "pip install tensorboard" in caught.value.fix
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore")  # of tensorboard's and protobuf's own
def test_tensorboards_events_have_the_numbers_of_the_metrics(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after three steps and resumed from two: each step is there once, with the number of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from tests.stages.test_train import train_until_killed

    run = Run(tmp_path / "run")
    train_until_killed(monkeypatch, 3, config, run)
    train(config, run, resume=True)
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    events = EventAccumulator(str(run.root / "tensorboard"))
    events.Reload()
    for name in ("task_loss", "alpha", "gate", "tokens_per_second"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [1, 2, 3, 4]
        assert [value for _, value in found] == pytest.approx([row[name] for row in rows])
    assert len(events.Scalars("heldout_loss")) == 2


@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio")
@pytest.mark.filterwarnings("ignore")
def test_trackio_keeps_its_data_on_this_machine_and_prints_nothing_on_stdout(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read back from its own database; no socket is opened."""

    def refused(*_: object) -> None:
        pytest.fail("a socket was opened")

    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setattr("socket.socket.connect", refused)
    from trackio.sqlite_storage import SQLiteStorage

    run = Run(tmp_path / "my-run")
    train(config.model_copy(update={"report_to": "trackio"}), run)
    assert capsys.readouterr().out == ""
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    found = [row for row in SQLiteStorage.get_logs("my-run", "train") if "task_loss" in row]
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    assert [row["task_loss"] for row in found] == pytest.approx([row["task_loss"] for row in rows])
