"""--help for a reader whose language is not the source's: the same texts translated, laid out by a terminal's cells.

Typer's own formatter counts letters, of which a Japanese one takes two cells, and breaks lines at blanks, of which
Japanese has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aegis.messages import translate_help
from aegis.messages.layout import cell_width, ljust, wrap

_MAX_NAME_CELLS = 30
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
    usage = " ".join([ctx.command_path, *map(translate_help, command.collect_usage_pieces(ctx))])
    what = wrap("", translate_help(command.help), width - 2).splitlines()
    lines = [wrap(f"{translate_help('Usage')}: ", usage, width), "", *_beside("  ", what)]
    parameters = [(parameter, record) for parameter in command.get_params(ctx) if (record := _record(parameter, ctx))]
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        rows = [record for parameter, record in parameters if parameter.param_type_name == kind]
        lines += _listed(title, rows, width)
    commands = getattr(command, "commands", {})
    lines += _listed("Commands", [_Row(name, in_short(found), "") for name, found in commands.items()], width)
    return "\n".join(lines)


def in_short(command: Any) -> str:
    """The first sentence of a command's help."""
    return translate_help(command.help).partition(_SENTENCE)[0]


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
        typers = typers.replace(word, translate_help(word))
    return _Row(names, own, default + typers)


def _with_default(text: str) -> tuple[str, str]:
    """An option's description, and the default that a setting's has behind it."""
    default = ""
    if translate_help(text) == text and text.endswith("]"):
        text, bracket, default = text.rpartition(" [")
        default = bracket + default
    return translate_help(text), default


def _listed(title: str, rows: Sequence[_Row], width: int) -> list[str]:
    if not rows:
        return []
    edge = min(max(cell_width(row.name) for row in rows), _MAX_NAME_CELLS) + 4
    lines = ["", f"{translate_help(title)}:"]
    for row in rows:
        start = f"  {row.name}"
        if cell_width(start) + 2 > edge:
            lines.append(start)
            start = ""
        texts = wrap("", row.text, width - edge).splitlines()
        # what is in brackets is not parted
        if row.brackets and cell_width(texts[-1] + row.brackets) > width - edge:
            texts.append(row.brackets.strip())
        elif row.brackets:
            texts[-1] += row.brackets
        lines += _beside(ljust(start, edge), texts)
    return lines


def _beside(start: str, texts: Sequence[str]) -> list[str]:
    """Lines at the right of something."""
    return [(" " * cell_width(start) if number else start) + text for number, text in enumerate(texts)]
