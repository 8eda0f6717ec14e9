"""Collects unusable rows with place and reason, and then accepts or refuses all of them at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis import progress
from aegis.errors import DataError
from aegis.messages import phrase

SHOWN = 5


class RowError(ValueError):
    """A row cannot be used; the text is the reason.

    Args:
        of_columns: whether the names of its columns are the cause.
    """

    def __init__(self, reason: str, *, of_columns: bool = False) -> None:
        super().__init__(reason)
        self.of_columns = of_columns


@dataclass
class Rejects:
    """The unusable rows of one source.

    The first bad row does not stop the reading: the user should see whether one line is broken or all are.
    """

    name: str
    skip_bad: int = 0
    count: int = 0
    listed: list[tuple[str, str]] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    of_columns: bool = False
    """Whether the names of columns are a cause."""

    def add(self, where: str, reason: str, *, of_columns: bool = False) -> None:
        self.count += 1
        self.of_columns |= of_columns
        if len(self.reasons) <= 1:
            self.reasons.add(reason)
        if len(self.listed) < max(SHOWN, self.skip_bad):
            self.listed.append((where, reason))

    def check(self, usable: int | None = None) -> None:
        """Raise DataError when more rows are bad than `skip_bad` allows, or when all are.

        Args:
            usable: number of good rows, if it is known.
        """
        if not self.count or (self.count <= self.skip_bad and usable != 0):
            return
        # one place is enough for a reason that all rows have
        alike = usable == 0 and len(self.reasons) == 1
        shown = 1 if alike else SHOWN
        lines = [f"  {where}: {reason}" for where, reason in self.listed[:shown]]
        if self.count > shown:
            key = "rejects.same" if alike else "rejects.more"
            lines.append(phrase(key, count=self.count - shown))
        rows = phrase("rejects.row" if self.count == 1 else "rejects.rows", count=self.count)
        if usable == 0:
            columns = phrase("rejects.columns") if self.of_columns else ""
            if self.count == 1:
                raise DataError("rejects.only", name=self.name, lines="\n".join(lines), columns=columns)
            raise DataError("rejects.all", rows=rows, name=self.name, lines="\n".join(lines), columns=columns)
        raise DataError("rejects.too_many", rows=rows, name=self.name, lines="\n".join(lines), count=self.count)


def warn_skipped(name: str, skipped: list[tuple[str, str]]) -> None:
    """Print every row that `skip_bad` left out."""
    if skipped:
        progress.warn(phrase("rejects.left_out", skipped_count=len(skipped), name=name))
    for where, reason in skipped:
        progress.warn(phrase("rejects.left_out_row", where=where, reason=reason))
