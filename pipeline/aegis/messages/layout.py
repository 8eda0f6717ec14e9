"""Text by the cells of a terminal, of which a Japanese letter takes two: columns that stand, lines that fold."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from unicodedata import east_asian_width

_WIDE = "\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff01-\uff60\uffe0-\uffe6"
"""Letters between which a line may be broken; all of them take two cells."""
_OPENING = "（「『［｛〈《【"
_CLOSING = "）」』］｝〉》】、。，．・：；！？ー々〜ぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮ:;,)"
_PIECE = re.compile(rf"\s+|[{_OPENING}]*(?:[^\s{_WIDE}]+|[{_WIDE}])[{_CLOSING}]*")
"""Spaces, a word, or one wide letter; with what must not end a line before it, and not begin one after it."""


def terminal_columns() -> int | None:
    """How wide the terminal is that results go to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def cell_width(text: str) -> int:
    """How many cells of a terminal a text takes."""
    try:
        from rich.cells import cell_len
    except ImportError:  # doctor's texts are shown where it may be missing
        return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)
    return cell_len(text)


def ljust(text: str, width: int) -> str:
    """A text at the left of so many cells; as it is if it takes more."""
    return text + " " * (width - cell_width(text))


def rjust(text: str, width: int) -> str:
    """A text at the right of so many cells; as it is if it takes more."""
    return " " * (width - cell_width(text)) + text


def widths(heads: Sequence[str], least: Sequence[int]) -> list[int]:
    """The columns of a table in cells: each has room for its head with two blanks, in any language."""
    return [max(width, cell_width(head) + 2) for head, width in zip(heads, least, strict=True)]


def table_row(texts: Sequence[str], columns: Sequence[int], names: int = 1) -> str:
    """A line of a table, or its beginning: so many names at the left of their columns, then numbers at the right."""
    pairs = list(zip(texts, columns, strict=False))
    return "".join([ljust(*pair) for pair in pairs[:names]] + [rjust(*pair) for pair in pairs[names:]])


def wrap(start: str, text: str, columns: int | None) -> str:
    """A line that keeps its indent on a terminal of so many columns; as it is where there is none.

    It is broken at spaces, and between Japanese letters unless a mark belongs to one of them; a path or an address is
    left whole.
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
