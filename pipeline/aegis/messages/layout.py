"""Aligns columns and wraps lines by terminal cells; a Japanese character takes two cells."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Literal
from unicodedata import east_asian_width

_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6"
"""Characters between which a line may be broken; all of them take two cells."""
_OPENING = "（「『［｛〈《【"
_CLOSING = "）」』］｝〉》】、。，．・：；！？ー々〜ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ:;,)"
Colour = Literal["good", "warning", "bad"]
# private-use characters instead of escape sequences, which would be escaped when the text is made printable
_MARKS: dict[Colour, str] = {"good": "\U000f0001", "warning": "\U000f0002", "bad": "\U000f0003"}
_END = "\U000f0000"
_SEQUENCES = str.maketrans(
    {_END: "\x1b[0m", _MARKS["good"]: "\x1b[32m", _MARKS["warning"]: "\x1b[33m", _MARKS["bad"]: "\x1b[31m"}
)
_PIECE = re.compile(rf"\s+|[{_OPENING}]*(?:[^\s{_WIDE}]+|[{_WIDE}])[{_CLOSING}]*")
"""Spaces; or a word or one wide character, with the marks that must not be separated from it by a line break."""


def terminal_columns() -> int | None:
    """Return the width of the terminal that stdout goes to, in cells; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cell_width(text: str) -> int:
    """Return the width of a text in terminal cells."""
    try:
        from rich.cells import cell_len
    except ImportError:  # doctor also runs where rich is missing
        return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
    return cell_len(text)


def ljust(text: str, width: int) -> str:
    """Pad a text on the right to `width` cells; a wider text stays as it is."""
    return text + " " * (width - cell_width(text))


def rjust(text: str, width: int) -> str:
    """Pad a text on the left to `width` cells; a wider text stays as it is."""
    return " " * (width - cell_width(text)) + text


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None, names: int = 1) -> list[str]:
    """Return a table's head and one text per row; the first `names` columns are aligned left, the others right.

    If the terminal is too narrow for the table, the head is "", and a row has its names, and below them each number
    with its column's head.
    """
    widths = [max(map(cell_width, column)) for column in zip(heads, *rows, strict=True)]
    if columns is None or sum(widths) + 2 * (len(widths) - 1) <= columns:
        return ["  ".join(_cells(row, widths, names)).rstrip() for row in (heads, *rows)]
    pairs = [[f"{head} {text}" for head, text in zip(heads, row, strict=True) if text][names:] for row in rows]
    return ["", *("\n".join(_folded(row[:names], texts, columns)) for row, texts in zip(rows, pairs, strict=True))]


def _cells(row: Sequence[str], widths: Sequence[int], names: int) -> list[str]:
    pairs = list(zip(row, widths, strict=True))
    return [ljust(*pair) for pair in pairs[:names]] + [rjust(*pair) for pair in pairs[names:]]


def _folded(names: Sequence[str], texts: Sequence[str], columns: int) -> list[str]:
    lines = ["  ".join(filter(None, names))]
    for text in texts:
        if len(lines) > 1 and cell_width(f"{lines[-1]}  {text}") <= columns:
            lines[-1] += f"  {text}"
        else:
            lines.append(f"  {text}")
    return lines


def fold(text: str, columns: int | None) -> str:
    """Return a text with its too wide lines wrapped; each line keeps its indent."""
    lines = []
    for line in text.split("\n"):
        bare = line.lstrip(" ")
        fits = columns is None or cell_width(line) <= columns
        lines.append(line if fits else wrap(line[: len(line) - len(bare)], bare, columns))
    return "\n".join(lines)


def paint(text: str, colour: Colour) -> str:
    """Return a text marked with a colour if stdout is a terminal that shows colours, else unchanged."""
    shows = sys.stdout.isatty() and "NO_COLOR" not in os.environ and (os.name != "nt" or "WT_SESSION" in os.environ)
    return f"{_MARKS[colour]}{text}{_END}" if shows else text


def coloured(text: str) -> str:
    """Return a text with its colour marks replaced by escape sequences; only for a text that was made printable."""
    return text.translate(_SEQUENCES)


def wrap(start: str, text: str, columns: int | None) -> str:
    """Wrap `start + text` to `columns` cells, with later lines indented to `start`; None does not wrap.

    Lines break at spaces, and between Japanese characters unless a mark belongs to one of them; a path or an address is
    not broken.
    """
    if columns is None:
        return start + text
    indent = " " * min(cell_width(start), columns // 3)
    lines, line = [], ""
    for piece in _PIECE.findall(re.sub(r"[\t\n\v\f\r]", " ", start + text)):
        if line.strip() and cell_width((line + piece).rstrip()) > columns:
            lines.append(line.rstrip())
            line = indent + piece.lstrip()
        else:
            line += piece
    return "\n".join([*lines, line.rstrip()] if line.strip() else lines)
