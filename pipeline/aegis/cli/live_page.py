"""Serves the live page of a run beside the command that trains it (--web)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aegis import progress
from aegis.errors import UsageError
from aegis.messages import phrase

if TYPE_CHECKING:  # `aegis --help` must not load it
    from aegis.runs.run import Run


@contextmanager
def live_page(run: Run, wanted: bool) -> Iterator[None]:
    """Serve the run's live page while the block runs, if it is wanted; of several processes, the first one does."""
    if not wanted or os.environ.get("RANK", "0") != "0":
        yield
        return
    from aegis.report.web import local

    local.require_packages(local.PACKAGES)
    from aegis.report.web.watch import make_app

    with local.beside(make_app(run)) as url:
        progress.say(phrase("cli.web", url=url, run=run.root))
        yield


def refuse_web(web: bool) -> None:
    """Refuse --web with --dry-run, which writes no numbers to show."""
    if web:
        raise UsageError("cli.web_of_dry_run")
