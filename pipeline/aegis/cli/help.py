"""--help in a language other than English: the same texts translated, and laid out by terminal cells.

Typer's own formatter counts letters and breaks lines at spaces. A Japanese letter takes two cells, and Japanese has no
spaces between words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from aegis.messages import translate_help
from aegis.messages.layout import cell_width, ljust, wrap

_MAX_NAME_CELLS = 30
"""Width of the column of names, in cells; the text beside a longer name begins on the next line."""
_SENTENCE = "。"
_TYPERS_WORDS = ("default", "required")


class _Row(NamedTuple):
    """A name, its description, and its default and range."""

    name: str
    text: str
    brackets: str


def format_help(command: Any, ctx: Any) -> str:
    """Return a command's help; `ctx` is its Click context."""
    width = ctx.make_formatter().width
    usage = " ".join([ctx.command_path, *map(translate_help, command.collect_usage_pieces(ctx))])
    what = wrap("", translate_help(command.help), width - 2).splitlines()
    lines = [wrap(f"{translate_help('Usage')}: ", usage, width), "", *_beside("  ", what)]
    parameters = [(parameter, record) for parameter in command.get_params(ctx) if (record := _record(parameter, ctx))]
    for kind, title in (("argument", "Arguments"), ("option", "Options")):
        rows = [record for parameter, record in parameters if parameter.param_type_name == kind]
        lines += _listed(title, rows, width)
    commands = getattr(command, "commands", {})
    lines += _listed("Commands", [_Row(name, first_sentence(found), "") for name, found in commands.items()], width)
    return "\n".join(lines)


def first_sentence(command: Any) -> str:
    """Return the first sentence of a command's help."""
    return translate_help(command.help).partition(_SENTENCE)[0]


def translate_completions(items: list[Any]) -> list[Any]:
    """Return completion items with their descriptions translated."""
    for item in items:
        item.help = item.help and "".join(_with_default(item.help))
    return items


def _record(parameter: Any, ctx: Any) -> _Row | None:
    """Return the row of a parameter, or None if it is hidden."""
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
    """Return an option's description, and the default in brackets that follows it in settings."""
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
        # a text in brackets is not broken
        if row.brackets and cell_width(texts[-1] + row.brackets) > width - edge:
            texts.append(row.brackets.strip())
        elif row.brackets:
            texts[-1] += row.brackets
        lines += _beside(ljust(start, edge), texts)
    return lines


def _beside(start: str, texts: Sequence[str]) -> list[str]:
    """Return the lines with `start` before the first and an equal indent before the others."""
    return [(" " * cell_width(start) if number else start) + text for number, text in enumerate(texts)]
