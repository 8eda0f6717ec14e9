"""The command that lists runs: list."""

from __future__ import annotations

from aegis import progress
from aegis.cli.registry import command


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
