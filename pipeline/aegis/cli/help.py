"""--help for a reader whose language is not the source's: the same texts translated, laid out by a terminal's cells.

Typer's own formatter counts letters, of which a Japanese one takes two cells, and breaks lines at blanks, of which
Japanese has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aegis.messages.layout import cells, folded, left
from aegis.messages import described

_NAMES_AT_MOST = 30
"""Cells of the column of names; what is beside a longer one begins on the next line."""
_SENTENCE = "。"
_TYPERS_WORDS = ("default", "required")


class _Row(NamedTuple):
    """A name, what it means, and the default and range that go with it."""

    name: str
    text: str
    brackets: str


def helped(command: Any, ctx: Any) -> str:
    """A command's help; `ctx` is its context, of typer's click."""
    width = ctx.make_formatter().width
    usage = " ".join([ctx.command_path, *map(described, command.collect_usage_pieces(ctx))])
    what = folded("", described(command.help), width - 2).splitlines()
    lines = [folded(f"{described('Usage')}: ", usage, width), "", *_beside("  ", what)]
    parameters = [(parameter, record) for parameter in command.get_params(ctx) if (record := _record(parameter, ctx))]
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        rows = [record for parameter, record in parameters if parameter.param_type_name == kind]
        lines += _listed(title, rows, width)
    commands = getattr(command, "commands", {})
    lines += _listed("Commands", [_Row(name, in_short(found), "") for name, found in commands.items()], width)
    return "\n".join(lines)


def in_short(command: Any) -> str:
    """The first sentence of a command's help."""
    return described(command.help).partition(_SENTENCE)[0]


def completed(items: list[Any]) -> list[Any]:
    """What a shell is offered, each with its description."""
    for item in items:
        item.help = item.help and "".join(_with_default(item.help))
    return items


def _record(parameter: Any, ctx: Any) -> _Row | None:
    """How a parameter is written, and what it says; None for one that is not shown."""
    record = parameter.get_help_record(ctx)
    if record is None:
        return None
    names, text = record
    own, default = _with_default(parameter.help)
    typers = text.removeprefix(parameter.help)
    for word in _TYPERS_WORDS:
        typers = typers.replace(word, described(word))
    return _Row(names, own, default + typers)


def _with_default(text: str) -> tuple[str, str]:
    """An option's description, and the default that a setting's has behind it."""
    default = ""
    if described(text) == text and text.endswith("]"):
        text, bracket, default = text.rpartition(" [")
        default = bracket + default
    return described(text), default


def _listed(title: str, rows: Sequence[_Row], width: int) -> list[str]:
    if not rows:
        return []
    edge = min(max(cells(row.name) for row in rows), _NAMES_AT_MOST) + 4
    lines = ["", f"{described(title)}:"]
    for row in rows:
        start = f"  {row.name}"
        if cells(start) + 2 > edge:
            lines.append(start)
            start = ""
        texts = folded("", row.text, width - edge).splitlines()
        # what is in brackets is not parted
        if row.brackets and cells(texts[-1] + row.brackets) > width - edge:
            texts.append(row.brackets.strip())
        elif row.brackets:
            texts[-1] += row.brackets
        lines += _beside(left(start, edge), texts)
    return lines


def _beside(start: str, texts: Sequence[str]) -> list[str]:
    """Lines at the right of something."""
    return [(" " * cells(start) if number else start) + text for number, text in enumerate(texts)]
