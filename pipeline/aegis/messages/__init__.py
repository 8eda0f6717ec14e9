"""What AEGIS says to people, by key, in the language they read.

One file a language, en.toml and ja.toml, with the same keys and the same places to fill. A key is "module.name".
The language is AEGIS_LANG ("en" or "ja"), else the locale's if there is a file for it, else English.
"""

from __future__ import annotations

import locale
import os
import tomllib
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")
VARIABLE = "AEGIS_LANG"


class Trouble(NamedTuple):
    """An error as three short texts; `why` and `fix` may be empty."""

    what: str
    why: str
    fix: str


def language() -> Language:
    """The language to speak."""
    names = (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG")
    asked = next((text for name in names if (text := os.environ.get(name))), None) or locale.getlocale()[0] or ""
    found = asked.replace("-", "_").partition("_")[0].lower()
    # Windows sets none of the variables, and calls the language by its English name
    found = {"japanese": "ja"}.get(found, found)
    return "ja" if found == "ja" else "en"


def phrase(key: str, /, **values: object) -> str:
    """The text `key` with its places filled."""
    text = _entry(key)
    if not isinstance(text, str):
        raise TypeError(f"{key} is an error, not a text")
    return text.format(**values)


def trouble(key: str, /, **values: object) -> Trouble:
    """The error `key` with its places filled."""
    parts = _entry(key)
    if not isinstance(parts, dict):
        raise TypeError(f"{key} is a text, not an error")
    return Trouble(*(str(parts.get(name, "")).format(**values) for name in Trouble._fields))


def words(group: str, spoken: Language) -> dict[str, str]:
    """All texts of one group by name, as they stand: for a page that is filled with them elsewhere."""
    return {name: text for name, text in catalogue(spoken)[group].items() if isinstance(text, str)}


@cache
def catalogue(spoken: Language) -> dict[str, Any]:
    """All of one language's messages by group, as its file has them."""
    return tomllib.loads((files(__name__) / f"{spoken}.toml").read_text(encoding="utf-8"))


def _entry(key: str) -> object:
    group, _, name = key.partition(".")
    return catalogue(language())[group][name]
