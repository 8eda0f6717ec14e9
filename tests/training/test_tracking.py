"""Tests of a training's rows in other trackers: read back with each tracker's reader, and refused early without it.

Where wandb or mlflow is not installed, a stand-in shows what they are started with.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from aegis import progress
from aegis.config.train_settings import TrainConfig
from aegis.errors import DivergedError, EnvironmentFault
from aegis.runs.run import Run
from aegis.stages.train import train
from aegis.training import tracking
from aegis.training.tracking import check_tracker, numbers_of, tracked
from tests.trained import small_training, write_chats

pytestmark = pytest.mark.usefixtures("unpainted")

ROOT = Path(__file__).parents[2]
ODD_NAME = "50% of 'it', 春"
STANDS_IN_FOR_WANDB = """
import os
class Run(list):
    def log(self, values, step): self.append((step, values))
    def finish(self): self.append("finished")
def init(**settings):
    started.append((settings, os.environ["WANDB_ERROR_REPORTING"]))
    return run
run, started = Run(), []
"""
STANDS_IN_FOR_MLFLOW = """
import os
class utils:
    class validation: MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH = 6000, 100
run, started = [], []
def search_experiments(filter_string): assert filter_string.count("'") == 2; return []
def create_experiment(name, **_): started.append(name); return "1"
def start_run(**_): started.append({k: v for k, v in os.environ.items() if k.startswith("MLFLOW")})
def log_params(values): started.append(values)
def log_metrics(values, step): run.append((step, values))
def end_run(): run.append("finished")
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Begin without the trackers' variables, and end with the environment as it was."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def config(quick_base: Path, tmp_path: Path) -> TrainConfig:
    changed = {"max_steps": 4, "report_to": "tensorboard", "save_steps": 2}
    return small_training(quick_base, write_chats(tmp_path / "data.jsonl")).model_copy(update=changed)


def test_a_row_is_reported_as_numbers_under_flat_names() -> None:
    row = {"step": 3, "task_loss": 2.5, "heldout_loss": None, "phase": "golden", "skipped": False}
    assert numbers_of(row) == {"task_loss": 2.5, "skipped": 0.0}
    turned = numbers_of({"step": 3, "turned_degrees": [0, 1, 2, 3, 4, 5, 6]})
    assert turned == {"turned_degrees_median": 3, "turned_degrees_most": 6}


def stand_in_for(name: str, source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `import NAME` find this source."""
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


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


def test_a_folder_of_a_trackers_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert find_spec("some_tracker") is not None
    with pytest.raises(EnvironmentFault):
        check_tracker("some_tracker")  # type: ignore[arg-type]


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize(
    ("name", "source"), [("wandb", STANDS_IN_FOR_WANDB), ("mlflow", STANDS_IN_FOR_MLFLOW)], ids=["wandb", "mlflow"]
)
def test_a_stand_in_is_started_to_stay_on_this_machine(
    name: Any, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows arrive; the project's name has no character that the real one refuses."""
    stand_in_for(name, source, tmp_path, monkeypatch)
    run = tmp_path / ODD_NAME
    with tracked(name, run, 0, {"seed": 3}) as report:
        report({"step": 1, "task_loss": 2.5})
    stand_in = sys.modules.pop(name)
    assert stand_in.run == [(1, {"task_loss": 2.5}), "finished"]
    if name == "wandb":
        settings = {"project": "50- of -it-, 春", "name": "train", "dir": run, "config": {"seed": 3}, "mode": "offline"}
        assert stand_in.started == [(settings, "false")]
    else:
        path = run.resolve().as_posix().replace("%", "%25")
        variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{path}/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
        assert stand_in.started == ["50- of -it-, 春", variables, {"seed": 3}]


@pytest.mark.usefixtures("unset")
def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for("wandb", STANDS_IN_FOR_WANDB, tmp_path, monkeypatch)
    os.environ["WANDB_MODE"] = "online"
    with tracked("wandb", tmp_path / "run", 0, {}):
        pass
    assert sys.modules.pop("wandb").started[0][0]["mode"] == "online"


@pytest.mark.usefixtures("unset")
def test_a_tracker_that_fails_stops_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step it is an error; a row that it does not take is a warning."""
    failing = STANDS_IN_FOR_WANDB + "\ndef log(self, values, step): raise OSError('no network')\nRun.log = log\n"
    stand_in_for("wandb", failing, tmp_path, monkeypatch)
    warnings: list[str] = []
    monkeypatch.setattr(progress, "warn", warnings.append)
    with tracked("wandb", tmp_path / "run", 0, {}) as report:
        report({"step": 7, "task_loss": 2.5})
    assert [(text.count("no network"), text.count("7")) for text in warnings] == [(1, 1)]
    sys.modules["wandb"].init = None  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match="--report-to wandb could not start"), tracked("wandb", tmp_path, 0, {}):
        pass
    del sys.modules["wandb"]


@pytest.mark.usefixtures("unset")
def test_a_tracker_that_does_not_finish_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete one goes on to its adapter, and a stopped one ends with its own error."""
    failing = STANDS_IN_FOR_WANDB + "\ndef finish(self): raise OSError('no network')\nRun.finish = finish\n"
    stand_in_for("wandb", failing, tmp_path, monkeypatch)
    warnings: list[str] = []
    monkeypatch.setattr(progress, "warn", warnings.append)
    with tracked("wandb", tmp_path / "run", 0, {}) as report:
        report({"step": 7, "task_loss": 2.5})
    assert sys.modules["wandb"].run == [(7, {"task_loss": 2.5})]
    with pytest.raises(DivergedError), tracked("wandb", tmp_path / "run", 0, {}):
        raise DivergedError("train.diverged", step=8, loss=2.5, norm=1.0)
    del sys.modules["wandb"]
    assert [(text.count("wandb"), text.count("no network")) for text in warnings] == [(1, 1)] * 2


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


@pytest.mark.skipif(find_spec("wandb") is None, reason="needs wandb")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unset")
def test_wandbs_file_has_the_numbers_of_the_metrics(config: TrainConfig, tmp_path: Path) -> None:
    """The training's bytes are those of a training without it."""
    run, alone = Run(tmp_path / ODD_NAME), Run(tmp_path / "alone")
    train(config.model_copy(update={"report_to": "wandb"}), run)
    train(config.model_copy(update={"report_to": "none"}), alone)
    for name in ("adapter_model.safetensors", "soul.safetensors"):
        assert (run.adapter / name).read_bytes() == (alone.adapter / name).read_bytes()
    (file,) = run.root.glob("wandb/offline-run-*/run-*.wandb")
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    found = wandbs_history(file)
    assert [row["_step"] for row in found] == [1, 2, 3, 4]
    for name in ("task_loss", "alpha"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in rows])


def wandbs_history(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a .wandb file: a header of 7 bytes, then blocks of records as in LevelDB's log."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, rows, parts = file.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if (1 << 15) - at % (1 << 15) < 7:  # the rest of a block that holds no record's head
            at += (1 << 15) - at % (1 << 15)
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record = Record.FromString(parts)
            parts = b""
            if record.WhichOneof("record_type") == "history":
                rows.append({"".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item})
    return rows


@pytest.mark.skipif(find_spec("mlflow") is None, reason="needs mlflow")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("unset")
def test_mlflows_database_has_the_numbers_of_the_metrics(config: TrainConfig, tmp_path: Path) -> None:
    run = Run(tmp_path / "it's 春")
    train(config.model_copy(update={"report_to": "mlflow"}), run)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.root.as_posix()}/mlflow.db")
    (experiment,) = client.search_experiments(filter_string="name LIKE 'it-s%'")
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.data.params["max_steps"]) == ("FINISHED", "4")
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    for name in ("task_loss", "alpha"):
        history = client.get_metric_history(found.info.run_id, name)
        assert [(point.step, point.value) for point in history] == [(row["step"], row[name]) for row in rows]


@pytest.mark.parametrize(
    ("name", "explicit"),
    [
        ("wandb", {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40}),
        ("mlflow", {"MLFLOW_DISABLE_TELEMETRY": "false"}),
    ],
)
def test_nothing_leaves_the_machine_unless_the_user_has_set_it(
    name: str, explicit: dict[str, str], tmp_path: Path
) -> None:
    """All connections would go to a proxy that counts them; the control is the same with the user's own setting."""
    if find_spec(name) is None:
        pytest.skip(f"needs {name}")
    assert connections(name, tmp_path / "offline", {}) == []
    assert connections(name, tmp_path / "explicit", explicit) != []


def connections(name: str, run: Path, variables: dict[str, str]) -> list[bytes]:
    """Return what a process that logs a row asks the proxy for; it is ended at the first request."""
    seen: list[bytes] = []
    left_out = ("WANDB_", "MLFLOW_", "CI", "PYTEST", "NO_PROXY", "no_proxy")  # mlflow sends nothing from a CI
    code = (
        "import sys; from pathlib import Path; from aegis.training.tracking import tracked\n"
        f"with tracked({name!r}, Path(sys.argv[1]), 0, {{}}) as report: report({{'step': 1, 'task_loss': 1.0}})"
    )
    run.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"

        def count() -> None:
            while True:
                try:
                    connection = proxy.accept()[0]
                except OSError:
                    return
                asked = b""
                with connection, suppress(OSError):
                    connection.settimeout(5)
                    asked = connection.recv(100)
                seen.append(asked)

        threading.Thread(target=count, daemon=True).start()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)} | variables
        environment |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), address)
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "pipeline"), *filter(None, sys.path)])
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(run)], env=environment, cwd=run, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.monotonic() + 200
        while child.poll() is None and not seen and time.monotonic() < until:
            time.sleep(0.1)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        code_of_end = child.wait()
    assert seen or code_of_end == 0
    return seen
