"""The rows of metrics.jsonl in TensorBoard or trackio as well, through accelerate's trackers; on this machine only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from aegis.errors import EnvironmentFault

ReportTo = Literal["none", "tensorboard", "trackio"]
Report = Callable[[Mapping[str, Any]], None]

_MEDIAN, _MOST = 3, 6
"""Where they stand in a row's `turned_degrees`."""


def check_tracker(report_to: ReportTo) -> None:
    """Refuse a tracker whose package is not there, before any work.

    Raises:
        EnvironmentFault: it is not installed.
    """
    if report_to != "none" and find_spec(report_to) is None:
        raise EnvironmentFault("tracking.no_package", report_to=report_to)


@contextmanager
def tracked(report_to: ReportTo, run: Path, start: int, config: Mapping[str, Any]) -> Iterator[Report]:
    """Give a function that passes a row on.

    TensorBoard's events go to tensorboard/ in the run; rows after `start`, which a resumed run writes again, are
    withdrawn there. trackio keeps its own data base, under the run's name.
    """
    if report_to == "none":
        yield lambda _row: None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker

    PartialState()  # accelerate's trackers will not speak without it
    # stdout is for results, and trackio greets and takes leave on it
    with redirect_stdout(sys.stderr):
        if report_to == "tensorboard":
            tracker: Any = TensorBoardTracker("tensorboard", run, purge_step=start + 1)
        else:
            tracker = TrackioTracker(run.resolve().name, name="train", resume="allow", config=dict(config))
        tracker.start()
    try:
        yield lambda row: tracker.log(numbers_of(row), step=int(row["step"]))
    finally:
        with redirect_stdout(sys.stderr):
            tracker.finish()
            if report_to == "trackio":
                import trackio

                trackio.finish()  # else it takes leave again when the process ends


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """What of a row is a number, under names of one level."""
    found = {name: float(value) for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    if isinstance(turned := row.get("turned_degrees"), list):
        found |= {"turned_degrees_median": turned[_MEDIAN], "turned_degrees_most": turned[_MOST]}
    return found
