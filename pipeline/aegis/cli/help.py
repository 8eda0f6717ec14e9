"""--help: the texts of commands and options in the reader's language, laid out by terminal cells, in groups.

Typer's own formatter counts letters, cuts a command's text off and breaks lines at spaces. A Japanese letter takes two
cells, and Japanese has no spaces between words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from aegis.cli import registry
from aegis.messages import translate_help
from aegis.messages.layout import cell_width, ljust, terminal_columns, wrap

_MAX_NAME_CELLS = 30
"""Width of the column of names, in cells; the text beside a longer name begins on the next line."""
_MIN_BESIDE, _INDENT = 60, 6
"""Width from which a text stands beside its name, and the indent of a text below its name."""
_SENTENCE = re.compile(r"。|(?<=\w)\.(?=\s|$)")
_TYPE = re.compile(r"<(.+)>$")
_TYPES = {
    "str": "TEXT",
    "path": "PATH",
    "int": "N",
    "int range": "N",
    "float": "X",
    "float range": "X",
    "list[str]": "TEXT ...",
}
"""Typer's names of types, and those of a manual page; a list of choices is shown unchanged."""


class _Row(NamedTuple):
    """A name, its description, and its default."""

    name: str
    text: str
    brackets: str


def format_help(command: Any, ctx: Any) -> str:
    """Return a command's help; `ctx` is its Click context."""
    # Click takes a terminal of less than 52 columns for one of 52
    width = min(ctx.make_formatter().width, (terminal_columns() or 80) - 2)
    usage = " ".join([ctx.command_path, *map(translate_help, command.collect_usage_pieces(ctx))])
    what = wrap("", translate_help(command.help), width - 2).splitlines()
    lines = [wrap(f"{translate_help('Usage')}: ", usage, width), "", *_beside("  ", what)]
    if hasattr(command, "commands"):
        entries = registry.commands().values()
        edge = max(len(entry.name) for entry in entries)
        for panel in registry.PANELS:
            rows = [_Row(entry.name, first_sentence(entry.help), "") for entry in entries if entry.panel == panel]
            lines += _listed(panel, rows, width, edge)
    for title, rows in _panels(command, ctx).items():
        lines += _listed(title, rows, width)
    entry = registry.commands().get(command.name)
    if entry and entry.examples:
        lines += ["", f"{translate_help('Examples')}:", *(f"  {example}" for example in entry.examples)]
    return "\n".join(lines)


def first_sentence(text: str) -> str:
    """Return the first sentence of a command's help."""
    return _SENTENCE.split(translate_help(text), maxsplit=1)[0]


def translate_completions(items: list[Any]) -> list[Any]:
    """Return completion items with their descriptions translated."""
    for item in items:
        item.help = item.help and translate_help(item.help)
    return items


def _panels(command: Any, ctx: Any) -> dict[str, list[_Row]]:
    """Return the rows of arguments and options by the title of their group, those of no group first."""
    found: dict[str, list[_Row]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
        title = getattr(parameter, "rich_help_panel", None) or kind
        if (row := _row(parameter, ctx)) is not None:
            found.setdefault(title, []).append(row)
    return found


def _row(parameter: Any, ctx: Any) -> _Row | None:
    """Return the row of a parameter, or None if it is hidden."""
    record = parameter.get_help_record(ctx)
    if record is None:
        return None
    names = _TYPE.sub(lambda found: _TYPES.get(found[1], found[1]), record[0])
    brackets = ""
    if parameter.required:
        brackets = f" [{translate_help('required')}]"
    elif isinstance(parameter.show_default, str):
        brackets = f" [{parameter.show_default}]"
    elif parameter.show_default and parameter.default not in (None, False, "", [], ()):
        brackets = f" [{parameter.default}]"
    return _Row(names, translate_help(parameter.help), brackets)


def _listed(title: str, rows: Sequence[_Row], width: int, names: int = 0) -> list[str]:
    if not rows:
        return []
    widest = names or max(cell_width(row.name) for row in rows)
    edge = _INDENT if width < _MIN_BESIDE else min(widest, _MAX_NAME_CELLS, width // 2) + 4
    lines = ["", f"{translate_help(title)}:"]
    for row in rows:
        start = f"  {row.name}"
        if cell_width(start) + 2 > edge:
            lines.append(start)
            start = ""
        texts = wrap("", row.text, width - edge).splitlines() or [""]
        # a text in brackets is not broken, if a line can hold it
        if row.brackets and cell_width(texts[-1] + row.brackets) > width - edge:
            texts += wrap("", row.brackets.strip(), width - edge).splitlines()
        elif row.brackets:
            texts[-1] += row.brackets
        lines += _beside(ljust(start, edge), texts)
    return lines


def _beside(start: str, texts: Iterable[str]) -> list[str]:
    """Return the lines with `start` before the first and an equal indent before the others."""
    return [(" " * cell_width(start) if number else start) + text for number, text in enumerate(texts)]
