"""What became of a data set's rows."""

from __future__ import annotations

from dataclasses import dataclass, field

from aegis import progress
from aegis.data.rejects import warn_skipped
from aegis.messages import phrase


@dataclass(frozen=True)
class DataReport:
    """What became of the rows. The token counts are those of the training windows, padding left out."""

    source: str
    content_sha256: str
    """sha256 of the file's bytes, or of the Hub dataset's rows."""
    rows: int
    """Usable rows, the training and the held-out ones together."""
    train_rows: int
    heldout_rows: int
    duplicates_of_heldout: int
    truncated: int
    """Chats longer than a window: their end is lost."""
    dropped: int
    """Rows of which no token within a window is trained on."""
    tokens: int
    trained_tokens: int
    windows: int
    heldout_windows: int
    pad_token_id: int
    cut_tokens: int = 0
    """Tokens of chats behind the end of their window."""
    fitting_length: int = 0
    """Tokens that a window would have to hold for 95 % of the chats to fit; 0 if there is none."""
    lost_thoughts: int = 0
    """Chats of which the chat template leaves an earlier answer's thought out."""
    unopened: int = 0
    """Chats whose answer has no thought, though the prompt opens one."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """Bad rows that were tolerated: place and reason."""

    def warn(self, max_length: int) -> None:
        """Report which rows were left out or cut, and what the chat template does to thoughts.

        Args:
            max_length: tokens that a window holds.
        """
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
