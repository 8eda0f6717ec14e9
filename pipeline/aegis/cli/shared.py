"""Helpers that several commands use: find the run, lock it, report as JSON."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from aegis import progress
from aegis.config.settings import DEMO
from aegis.errors import UsageError
from aegis.runs.run import Run


def existing_run(run: Path | None) -> Run:
    """Return the run that `--run` names, or the demo's.

    Raises:
        UsageError: there is no such directory.
    """
    path = run or Path("artifacts") / DEMO
    if not path.is_dir():
        raise UsageError("cli.no_run", path=path)
    return Run(path)


def lock_unless_dry_run(run: Run, dry_run: bool) -> AbstractContextManager[None]:
    """Lock a run for a command that writes to it."""
    return nullcontext() if dry_run else run.lock()


def announce_overwrite(*places: Path | None, overwrite: bool) -> None:
    """Name what --overwrite is about to replace."""
    from aegis.runs.overwriting import announce

    if overwrite:
        announce([place for place in places if place is not None])


def report_as_json() -> None:
    """Report progress and results as JSON lines."""
    from aegis.cli.console.reporters import JsonReporter

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    progress.install(JsonReporter())
