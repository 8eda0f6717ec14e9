"""The text of list: a table of the runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aegis.messages import phrase
from aegis.messages.layout import table
from aegis.runs import disk

if TYPE_CHECKING:
    from aegis.runs.listing import RunSummary


def listed(runs: Sequence[RunSummary], columns: int | None) -> str:
    """After list: one row per run; the run that was used last is at the end."""
    heads = [phrase(f"list_head.{name}") for name in ("run", "state", "loss", "size", "proof")]
    rows = [
        [
            run.path.name,
            phrase(f"list_state.{run.state}", step=run.step),
            "-" if run.loss is None else f"{run.loss:.3f}",
            disk.format_bytes(run.bytes),
            phrase(f"list_proof.{run.proof}"),
        ]
        for run in runs
    ]
    return "\n".join(filter(None, table(heads, rows, columns, names=2)))
