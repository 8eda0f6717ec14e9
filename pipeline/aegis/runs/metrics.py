"""Reads metrics.jsonl and answers.jsonl, whose rows have a step; rows that a crash left incomplete are skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the complete rows of such a file; none if there is no file."""
    return [row for _, row in _whole(path)]


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
            whole = isinstance(row["step"], int)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # a crash left this row incomplete
        if whole:
            yield line, row
