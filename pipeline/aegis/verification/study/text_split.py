"""Divides the text of a quantization study in two: a file is not measured on the text of its importance matrix."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aegis.data.chat import Encoder
from aegis.data.packing import Windows
from aegis.errors import DataError
from aegis.messages import phrase
from aegis.verification import token_sequences
from aegis.verification.heldout_text import MIN_TOKENS, Sample

_MIN_CALIBRATION_TOKENS = 256
_PARTS = 4
"""One part in _PARTS is measured on; the others make the importance matrix."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class StudyText:
    """The two parts of a study's text; half of each is chats as the base's template renders them, half plain text.

    Attributes:
        calibration: the text that the importance matrix is made from.
        calibration_tokens: its number of tokens.
        measured: token ids that go through every file.
    """

    calibration: str
    calibration_tokens: int
    measured: list[list[int]]

    @classmethod
    def of_file(cls, path: Path, tokenizer: Any, tokens: int, calibration_tokens: int, limit: int) -> StudyText:
        """Divide a UTF-8 file's paragraphs, or its lines if it has fewer than four paragraphs.

        Raises:
            UsageError: there is no such file.
            DataError: it is not UTF-8, too short, or in one piece.
        """
        parts = token_sequences.read_text(path, tokenizer, _PARTS * MIN_TOKENS)
        if len(parts) < _PARTS:
            parts = [line.strip() for part in parts for line in part.splitlines() if line.strip()]
        if len(parts) < _PARTS:
            raise DataError("study_text.one_piece", path=path)
        kept, apart = _apart(parts)
        _refuse_short(str(path), *(Encoder(tokenizer).token_ids(side) for side in (kept, apart)))
        calibration = Sample.of_text(kept, tokenizer, calibration_tokens, limit).compared
        return cls._make(calibration, Sample.of_text(apart, tokenizer, tokens, limit).compared, tokenizer)

    @classmethod
    def of_rows(
        cls, train: Windows, heldout: Windows | None, tokenizer: Any, tokens: int, calibration_tokens: int, limit: int
    ) -> StudyText:
        """Divide a run's rows: trained rows for the importance matrix, and held-out rows to measure on.

        If there are no held-out rows, every fourth row is measured on.

        Raises:
            DataError: there are too few rows.
        """
        if heldout is not None:
            kept, apart = (
                token_sequences.first_pieces(train, calibration_tokens),
                token_sequences.first_pieces(heldout, 2 * tokens),
            )
        else:
            kept, apart = _apart(token_sequences.first_pieces(train, calibration_tokens + _PARTS * tokens))
        _refuse_short(phrase("study_text.of_run"), kept, apart)
        calibration = Sample.of_chats(kept, tokenizer, calibration_tokens, limit).compared
        return cls._make(calibration, Sample.of_chats(apart, tokenizer, tokens, limit).compared, tokenizer)

    @classmethod
    def _make(cls, calibration: list[list[int]], measured: list[list[int]], tokenizer: Any) -> StudyText:
        documents = [tokenizer.decode(sequence) for sequence in calibration]
        return cls("\n".join(documents) + "\n", sum(map(len, calibration)), measured)


def _refuse_short(what: str, kept: list[list[int]], apart: list[list[int]]) -> None:
    found = [sum(map(len, side)) for side in (kept, apart)]
    if found[0] < _MIN_CALIBRATION_TOKENS or found[1] < MIN_TOKENS:
        raise DataError(
            "study_text.too_short",
            what=what,
            calibration_tokens=found[0],
            min_calibration_tokens=_MIN_CALIBRATION_TOKENS,
            measured_tokens=found[1],
            min_tokens=MIN_TOKENS,
        )


def _apart(items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Return all items except every fourth, and every fourth item."""
    listed = list(items)
    kept = [item for number, item in enumerate(listed) if number % _PARTS != _PARTS - 1]
    return kept, listed[_PARTS - 1 :: _PARTS]
