"""Sends the rows of metrics.jsonl to another tracker, through accelerate; nothing leaves this machine by default."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from aegis import progress
from aegis.errors import EnvironmentFault, first_line
from aegis.messages import phrase

ReportTo = Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]
Report = Callable[[Mapping[str, Any]], None]

_MEDIAN, _MAX = 3, 6
"""Indices of the median and the maximum in a row's `turned_degrees`."""


def check_tracker(report_to: ReportTo) -> None:
    """Check before any work that the tracker's package is installed.

    Raises:
        EnvironmentFault: it is not.
    """
    if report_to == "none":
        return
    spec = find_spec(report_to)
    if spec is None or spec.origin is None:  # a folder of this name, as wandb makes one, is no package
        raise EnvironmentFault("tracking.no_package", report_to=report_to)


@contextmanager
def tracked(report_to: ReportTo, run: Path, start: int, config: Mapping[str, Any]) -> Iterator[Report]:
    """Yield a function that sends a row to the tracker.

    TensorBoard's events go to tensorboard/ in the run. A resumed run writes the rows after `start` again, so the old
    ones are purged there. trackio keeps its own database, under the run's name. wandb's files go to wandb/ in the run,
    MLflow's database is mlflow.db in it; each start of the training is a run of its own there. A user who wants them on
    a server sets the tracker's own variables: WANDB_MODE=online, MLFLOW_TRACKING_URI.

    Raises:
        EnvironmentFault: the tracker does not start. Later failures of it are warnings, and the training goes on: a row
            that it does not take is lost there, and perhaps the latest rows if it does not finish.
    """
    if report_to == "none":
        yield lambda _row: None
        return
    from accelerate import PartialState

    PartialState()  # accelerate's trackers need it
    # stdout is for results, and some trackers print on it when they start and finish
    with redirect_stdout(sys.stderr):
        try:
            tracker = _started(report_to, run, start, dict(config))
        except Exception as error:
            raise EnvironmentFault("tracking.not_started", report_to=report_to, error=first_line(error)) from error

    def report(row: Mapping[str, Any]) -> None:
        try:
            tracker.log(numbers_of(row), step=int(row["step"]))
        except Exception as error:
            progress.warn(phrase("tracking.row_lost", report_to=report_to, step=row["step"], error=first_line(error)))

    try:
        yield report
    finally:
        _finish(tracker, report_to)


def _started(report_to: ReportTo, run: Path, start: int, config: dict[str, Any]) -> Any:
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

    name = run.resolve().name
    if report_to == "tensorboard":
        tracker: Any = TensorBoardTracker("tensorboard", run, purge_step=start + 1)
    elif report_to == "trackio":
        tracker = TrackioTracker(name, name="train", resume="allow", config=config)
    elif report_to == "wandb":
        _set_unless_set(WANDB_MODE="offline", WANDB_ERROR_REPORTING="false", WANDB_CONSOLE="off")
        tracker = WandBTracker(_plain(name), name="train", dir=run, config=config, mode=os.environ["WANDB_MODE"])
    else:
        # SQLAlchemy takes %XX for a character, and ? for the end of the path
        path = (run.resolve() / "mlflow.db").as_posix().replace("%", "%25").replace("?", "%3F")
        _set_unless_set(MLFLOW_TRACKING_URI=f"sqlite:///{path}", MLFLOW_DISABLE_TELEMETRY="true")
        tracker = MLflowTracker(_plain(name), run_name="train")
    tracker.start()
    if report_to == "mlflow":
        tracker.store_init_configuration(config)
    return tracker


def _finish(tracker: Any, report_to: ReportTo) -> None:
    """End a tracker; its failure must not replace the error of a training, or cost a complete one its adapter."""
    try:
        with redirect_stdout(sys.stderr):
            tracker.finish()
            if report_to == "trackio":
                import trackio

                trackio.finish()  # otherwise it prints again when the process ends
    except Exception as error:
        progress.warn(phrase("tracking.not_finished", report_to=report_to, error=first_line(error)))


def _set_unless_set(**variables: str) -> None:
    """Set environment variables that a tracker reads when it is imported; what the user has set stays."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)


def _plain(name: str) -> str:
    """Return a run's name as a project's: wandb refuses some characters, and accelerate quotes it in a query."""
    return re.sub(r"[/\\#?%:'\"]", "-", name)[:128]


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row under flat names."""
    found = {name: float(value) for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    if isinstance(turned := row.get("turned_degrees"), list):
        found |= {"turned_degrees_median": turned[_MEDIAN], "turned_degrees_most": turned[_MAX]}
    return found
