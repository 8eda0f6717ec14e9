"""The application of a run's live page: what its training writes, numbers and answers, and its report."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from aegis.report.metric_rows import are_of_adapter
from aegis.report.web.local import own_host_only
from aegis.report.web.pages import page
from aegis.runs.metrics import read_metrics
from aegis.runs.run import Run
from aegis.soul.gate import Phase

_MAX_ANSWERS, _MAX_CHARACTERS = 8, 2000
MAX_POINTS = 2000
"""More than a screen has pixels; all held-out losses besides."""
_RECENT = 10
"""Rows that the time left is estimated from: long enough to include evaluation and saving."""
_SERIES = ("step", "task_loss", "heldout_loss", "keep_kl", "alpha", "gate", "tokens_per_second")
_REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'; sandbox"
)


def make_app(run: Run) -> Starlette:
    """Return the application: the page, /state, which it asks for every two seconds, and /report."""

    async def watch(_: Request) -> Response:
        return page("watch")

    def state(_: Request) -> Response:
        return JSONResponse(state_of(run), headers={"Cache-Control": "no-store"})

    def report(_: Request) -> Response:
        if not run.report_page.is_file():
            return Response(status_code=404)
        headers = {"Content-Security-Policy": _REPORT_POLICY, "Cache-Control": "no-store"}
        return FileResponse(run.report_page, media_type="text/html", headers=headers)

    routes = [Route("/", watch), Route("/state", state), Route("/report", report)]
    return Starlette(routes=routes, middleware=[own_host_only()])


def state_of(run: Run) -> dict[str, Any]:
    """Return what the page shows: the run's name, numbers, and the latest answers.

    `series` has a list per name, all of one length, None where a row has no such number; `age` and `seconds_left` are
    in seconds; `report` is the time at which the finished training's report was written.
    """
    rows = read_metrics(run.metrics)
    last = rows[-1] if rows else {}
    planned, phase = last.get("planned_steps"), last.get("phase")
    ended = run.adapter.is_dir() and are_of_adapter(rows)
    moment = last.get("time")
    return {
        "name": run.root.resolve().name,
        "state": "ended" if ended else "running" if rows else "waiting",
        "planned": planned,
        "epoch": last.get("epoch"),
        "phase": phase if phase in [each.value for each in Phase] else None,
        "peak_bytes": max((row.get("peak_bytes") or 0 for row in rows), default=0),
        "age": None if moment is None else max(0.0, time.time() - moment),
        "seconds_left": None if ended else _seconds_left(rows[-_RECENT:], planned),
        # while a training runs again, a report is about the one before
        "report": run.report_page.stat().st_mtime if ended and run.report_page.is_file() else None,
        "answers": _latest_answers(run),
        "series": {name: [row.get(name) for row in _thinned(rows)] for name in _SERIES},
    }


def _seconds_left(rows: Sequence[dict[str, Any]], planned: float | None) -> float | None:
    times = [row.get("time") for row in rows]
    if planned is None or len(rows) < 2 or times[0] is None or times[-1] is None:
        return None
    first, last = rows[0]["step"], rows[-1]["step"]
    return (planned - last) * (times[-1] - times[0]) / (last - first) if last > first else None


def _latest_answers(run: Run) -> list[dict[str, Any]]:
    """Return the answers after the latest step that has any."""
    rows = read_metrics(run.answers)
    latest = [row for row in rows if row["step"] == rows[-1]["step"]][-_MAX_ANSWERS:]
    names = ("question", "answer", "reference")
    return [
        {"step": row["step"], "cut": row.get("cut") is True, **{name: _text(row, name) for name in names}}
        for row in latest
    ]


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return value[:_MAX_CHARACTERS] if isinstance(value, str) else ""


def _thinned(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    every = math.ceil(len(rows) / MAX_POINTS)
    return [
        row
        for place, row in enumerate(rows)
        if place % every == 0 or place == len(rows) - 1 or row.get("heldout_loss") is not None
    ]
