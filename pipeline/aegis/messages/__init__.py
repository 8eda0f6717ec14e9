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


class Bilingual(NamedTuple):
    """One text twice: as a report has it, which is in English for whoever reads it, and as it is shown."""

    recorded: str
    shown: str

    @classmethod
    def same(cls, text: str) -> Bilingual:
        """What is the same in every language, or is not to be had in two."""
        return cls(text, text)

    def followed_by(self, text: str) -> Bilingual:
        return Bilingual(self.recorded + text, self.shown + text)


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
    text = _entry(key, language())
    if not isinstance(text, str):
        raise TypeError(f"{key} is an error, not a text")
    return text.format(**values)


def bilingual(key: str, /, **values: object) -> Bilingual:
    """The text `key` with its places filled, for a report and for the reader; so are texts that fill a place."""
    sides = []
    languages: tuple[Language, Language] = ("en", language())
    for side, spoken in enumerate(languages):
        filled = {name: value[side] if isinstance(value, Bilingual) else value for name, value in values.items()}
        sides.append(str(_entry(key, spoken)).format(**filled))
    return Bilingual(*sides)


def trouble(key: str, /, **values: object) -> Trouble:
    """The error `key` with its places filled."""
    parts = _entry(key, language())
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


def _entry(key: str, spoken: Language) -> object:
    group, _, name = key.partition(".")
    return catalogue(spoken)[group][name]
