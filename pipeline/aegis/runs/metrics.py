"""Reads metrics.jsonl and answers.jsonl, whose rows have a step; broken rows and impossible numbers are left out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.messages.validation import MAX_STEPS

_NUMBERS = frozenset((
    "epoch", "loss", "task_loss", "heldout_loss", "keep_kl", "alpha", "gate", "orthogonality_error", "det", "grad_norm",
    "learning_rate", "tokens_per_second", "peak_bytes", "planned_steps", "time",
))  # fmt: skip
"""The keys whose values are numbers."""
_MAX_NUMBER = 1e18
"""More than any of them can be, and few enough digits for a table."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of such a file; none if there is no file.

    Readers calculate with the numbers, format and draw them, and anybody may have written the file: what is no number,
    not finite or impossibly large becomes None.
    """
    return [
        {name: value if name not in _NUMBERS or _is_possible(value) else None for name, value in row.items()}
        for _, row in _whole(path)
    ]


def truncate_metrics(path: Path, step: int) -> None:
    """Remove the rows after `step`, which a resumed run will write again."""
    if not path.is_file():
        return
    kept = [line + "\n" for line, row in _whole(path) if row["step"] <= step]
    part = path.with_suffix(".part")
    part.write_text("".join(kept), encoding="utf-8")
    part.replace(path)


def _whole(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        try:
            row = json.loads(line)
            whole = type(row["step"]) is int and 0 <= row["step"] <= MAX_STEPS
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a crash left this row incomplete
        if whole:
            yield line, row


def _is_possible(value: object) -> bool:
    # false for NaN too
    return isinstance(value, int | float) and not isinstance(value, bool) and -_MAX_NUMBER < value < _MAX_NUMBER
