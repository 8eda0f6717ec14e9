"""The commands that list runs and watch one: list, watch."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import RunOption
from aegis.cli.paths import existing_run
from aegis.cli.registry import command
from aegis.report.web import local
from aegis.report.web.local import WATCH_PORT


@command("Results", "aegis list", "aegis list --json", name="list")
def list_runs() -> None:
    """List the runs in artifacts/: state, held-out loss, size, and whether verify has proven them."""
    from aegis.cli.screens import runs as screen
    from aegis.errors import UsageError
    from aegis.messages import layout
    from aegis.runs.listing import summarized
    from aegis.runs.run import ARTIFACTS, Run

    found = [summarized(run) for run in Run.known()]
    if not found:
        raise UsageError("cli.no_runs", artifacts=ARTIFACTS)
    progress.result(screen.listed(found, layout.terminal_columns()), {"runs": found})


@command("Results", "aegis watch", "aegis watch --run artifacts/my-model --port 0")
def watch(
    run: RunOption = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0 picks a free port")] = WATCH_PORT,
) -> None:
    """Show a training live in the browser, and its report when it is written; on this machine only, until Ctrl-C."""
    from aegis.cli.screens import results

    run_dir = existing_run(run)
    local.require_packages(local.PACKAGES)
    with local.bound(port) as listener:
        from aegis.report.web.watch import make_app

        def ready(url: str) -> None:
            progress.result(results.watched(url, run_dir.root), {"page": url, "run": run_dir.root})

        local.run(make_app(run_dir), listener, ready, output.log)
