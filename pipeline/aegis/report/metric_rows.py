"""Finds out whether the rows of metrics.jsonl are of the training that made the run's adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def are_of_adapter(rows: Sequence[Mapping[str, Any]], planned_steps: object = None) -> bool:
    """Return whether the rows end where their training ended.

    A `train --overwrite` that is at work or was killed leaves its own rows beside the adapter of the one before.

    Args:
        rows: the complete rows, in their order.
        planned_steps: the number of steps in the adapter's settings, which the rows must have too; None if unknown.
    """
    planned = rows[-1].get("planned_steps") if rows else None
    if planned is None:
        return True
    return bool(rows[-1]["step"] >= planned) and planned_steps in (None, planned)
