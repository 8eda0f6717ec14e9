"""Sends the rows of metrics.jsonl to TensorBoard or trackio on this machine, through accelerate's trackers."""

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

_MEDIAN, _MAX = 3, 6
"""Indices of the median and the maximum in a row's `turned_degrees`."""


def check_tracker(report_to: ReportTo) -> None:
    """Check before any work that the tracker's package is installed.

    Raises:
        EnvironmentFault: it is not.
    """
    if report_to != "none" and find_spec(report_to) is None:
        raise EnvironmentFault("tracking.no_package", report_to=report_to)


@contextmanager
def tracked(report_to: ReportTo, run: Path, start: int, config: Mapping[str, Any]) -> Iterator[Report]:
    """Yield a function that sends a row to the tracker.

    TensorBoard's events go to tensorboard/ in the run. A resumed run writes the rows after `start` again, so the old
    ones are purged there. trackio keeps its own database, under the run's name.
    """
    if report_to == "none":
        yield lambda _row: None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker

    PartialState()  # accelerate's trackers need it
    # stdout is for results, and trackio prints on it when it starts and finishes
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

                trackio.finish()  # otherwise it prints again when the process ends


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a row under flat names."""
    found = {name: float(value) for name, value in row.items() if isinstance(value, int | float) and name != "step"}
    if isinstance(turned := row.get("turned_degrees"), list):
        found |= {"turned_degrees_median": turned[_MEDIAN], "turned_degrees_most": turned[_MAX]}
    return found
