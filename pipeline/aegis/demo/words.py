"""The data files of the demo: their tables of words, and patterns filled with those words."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from aegis.demo.grammar import Adjective, Verb, predicate
from aegis.demo.voice import Voice

_PREDICATE = re.compile(r"\[([^\]]*)\]")


class Row(dict[str, str]):
    """One row of a table: a cell by the name of its column, also as an attribute, for `{row.column}` in a pattern."""

    def __getattr__(self, column: str) -> str:
        try:
            return self[column]
        except KeyError:
            raise AttributeError(column) from None


@cache
def data(name: str) -> dict[str, Any]:
    """What the data file `name`.toml of this package holds."""
    with Path(__file__).with_name(f"{name}.toml").open("rb") as file:
        return tomllib.load(file)


@cache
def table(name: str) -> tuple[Row, ...]:
    """The rows of a table of world.toml.

    Raises:
        ValueError: a row has more or fewer cells than the table has columns.
    """
    content = data("world")[name]
    columns = content["columns"].split()
    rows = []
    for line in content["rows"].splitlines():
        cells = ("" if cell == "-" else cell for cell in line.split())
        rows.append(Row(zip(columns, cells, strict=True)))
    return tuple(rows)


def selected(rows: tuple[Row, ...], rule: Mapping[str, Any], values: Mapping[str, object]) -> list[Row]:
    """The rows that a rule's `when` and `unless` leave; both may name `values` and the row's own columns."""
    when, unless = rule.get("when", {}), rule.get("unless", {})
    return [row for row in rows if all(_matches(row, values, when)) and not any(_matches(row, values, unless))]


def filled(pattern: str, values: Mapping[str, object], voice: Voice) -> str:
    """A pattern with its `{values}` filled in and its `[predicates]` in the form and voice they need.

    Raises:
        KeyError: the pattern names a value that is not there.
        ValueError: the pattern asks for a form that does not exist.
    """
    return _PREDICATE.sub(lambda match: _inflected(match[1], voice), pattern.format_map(values))


def _matches(row: Row, values: Mapping[str, object], conditions: Mapping[str, str | list[str]]) -> Iterator[bool]:
    known = {**values, **row}
    for column, allowed in conditions.items():
        options = [allowed] if isinstance(allowed, str) else allowed
        yield row[column] in [option.format_map(known) for option in options]


def _inflected(text: str, voice: Voice) -> str:
    if "|" in text:
        return voice.pick(*text.split("|"))
    plain, _, form = text.partition(":")
    word = predicate(plain)
    match form:
        case "":
            return voice.say(word)
        case "not":
            return voice.say(word, negative=True)
        case "past":
            return voice.say(word, past=True)
        case "te":
            return word.te if isinstance(word, Adjective | Verb) else plain + "で"
        case "attribute":
            return plain if isinstance(word, Adjective) else plain + "の"
        case "stem" if isinstance(word, Verb):
            return word.masu_stem
    raise ValueError(f"[{text}]: no such form")
