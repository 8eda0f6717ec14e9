"""The report on a data set's rows, and its warnings."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis import progress
from aegis.data.rejects import warn_skipped
from aegis.messages import phrase


@dataclass(frozen=True)
class DataReport:
    """Counts of a data set's rows, tokens and windows; tokens are those of the training windows without padding."""

    source: str
    content_sha256: str
    """sha256 of the file's bytes, or of the Hub dataset's rows."""
    rows: int
    """Number of usable rows, for training and held out."""
    train_rows: int
    heldout_rows: int
    duplicates_of_heldout: int
    truncated: int
    """Number of chats longer than a window, whose end is lost."""
    dropped: int
    """Number of rows without a trained token within a window."""
    tokens: int
    trained_tokens: int
    windows: int
    heldout_windows: int
    pad_token_id: int
    cut_tokens: int = 0
    """Number of the chats' tokens after the end of their window."""
    fitting_length: int = 0
    """Window length that 95 % of the chats fit into; 0 without chats."""
    lost_thoughts: int = 0
    """Number of chats in which the template leaves the thought of an earlier answer out."""
    unopened: int = 0
    """Number of chats with an answer without a thought, although the prompt opens one."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Place and reason of each bad row that was left out."""
    left_out: list[str] = field(default_factory=list)
    """Names of the harmless columns, which are left out."""

    def warn(self, max_length: int) -> None:
        """Print which columns and rows were left out or cut, and warn of what the chat template does to thoughts.

        Args:
            max_length: tokens per window.
        """
        if self.left_out:
            progress.say(phrase("dataset.left_out", names=", ".join(name or "''" for name in self.left_out)))
        warn_skipped(self.source, self.skipped)
        total = self.rows + self.dropped
        if self.truncated:
            progress.warn(
                phrase(
                    "dataset.cut",
                    count=self.truncated,
                    rows=total,
                    max_length=max_length,
                    tokens=self.cut_tokens,
                    fitting=self.fitting_length,
                )
            )
        if self.dropped:
            progress.warn(phrase("dataset.dropped", count=self.dropped, rows=total))
        if self.lost_thoughts:
            progress.warn(phrase("dataset.lost_thoughts", count=self.lost_thoughts, rows=total))
        if self.unopened:
            progress.warn(phrase("dataset.unopened", count=self.unopened, rows=total))
