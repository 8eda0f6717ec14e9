"""The text of `aegis data`: the report on the rows, and the first rows with their trained text marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aegis.messages import phrase
from aegis.messages.layout import paint, wrap

if TYPE_CHECKING:  # this module loads torch, which `aegis --help` must not
    from aegis.data.report import DataReport
    from aegis.stages.inspect_data import DataView, RowView

_MAX_CHARACTERS = 4000
"""Maximum number of shown characters of a row; a longer one is cut, with a note."""


def rows_line(data: DataReport, source: str, max_length: int, *, steps: int, passes: float | None) -> str:
    """Return the line on the rows that `aegis data` and `aegis plan` print."""
    return phrase(
        "screens_plan.rows",
        source=source,
        rows=data.rows,
        heldout=data.heldout_rows,
        tokens=data.tokens,
        trained=data.trained_tokens,
        windows=data.windows,
        length=max_length,
        passes=passes,
        steps=steps,
    )


def inspected(view: DataView, columns: int | None = None) -> str:
    """After data."""
    data = view.report
    rows = rows_line(data, data.source, view.max_length, steps=view.steps, passes=view.passes)
    lines = [wrap("", rows, columns)]
    if view.too_many_bad:
        lines.append(wrap("", phrase("screens_data.refused", bad=len(data.skipped)), columns))
    lines += ["", phrase("screens_data.legend")]
    return "\n".join([*lines, *(line for row in view.rows for line in _row(row))])


def _row(row: RowView) -> list[str]:
    head = phrase("screens_data.row", where=row.where, tokens=row.tokens, trained=row.trained_tokens)
    left, shown = _MAX_CHARACTERS, ""
    for text, is_trained in row.parts:
        piece = text[:left]
        left -= len(piece)
        if piece:
            shown += paint(f"⟦{piece}⟧", "good") if is_trained else piece
    hidden = sum(len(text) for text, _ in row.parts) - _MAX_CHARACTERS
    more = [phrase("screens_data.more", characters=hidden)] if hidden > 0 else []
    return ["", head, shown.rstrip("\n"), *more]
