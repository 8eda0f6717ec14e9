"""What AEGIS says to people, by key, in the language they read.

One file a language, en.toml and ja.toml, with the same keys and the same places to fill. A key is "module.name".
Commands and settings are described where they are, in English; help_ja.toml has the other language by the English text,
so that one that was changed is missed, and not taken for the old one.
The language is AEGIS_LANG ("en" or "ja"), else the locale's if there is a file for it, else English.
"""

from __future__ import annotations

import locale
import os
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")
VARIABLE = "AEGIS_LANG"


class Bilingual(NamedTuple):
    """One text twice: as a report has it, which is in English for whoever reads it, and as it is shown."""

    english: str
    shown: str

    @classmethod
    def same(cls, text: str) -> Bilingual:
        """What is the same in every language, or is not to be had in two."""
        return cls(text, text)

    @classmethod
    def joined(cls, separator: str, texts: Iterable[Bilingual]) -> Bilingual:
        recorded, shown = [], []
        for text in texts:
            recorded.append(text.english)
            shown.append(text.shown)
        return cls(separator.join(recorded), separator.join(shown))

    def capitalised(self) -> Bilingual:
        return Bilingual(*(side[:1].upper() + side[1:] for side in self))

    def after(self, start: str) -> Bilingual:
        return Bilingual(start + self.english, start + self.shown)

    def followed_by(self, text: str) -> Bilingual:
        return Bilingual(self.english + text, self.shown + text)


class ErrorText(NamedTuple):
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
    languages: tuple[Language, Language] = ("en", language())
    return Bilingual(
        *(str(_entry(key, spoken)).format(**_of_side(side, values)) for side, spoken in enumerate(languages))
    )


def error_texts(key: str, /, **values: object) -> tuple[ErrorText, ErrorText]:
    """The error `key` with its places filled, for a report and for the reader."""
    languages: tuple[Language, Language] = ("en", language())
    recorded, shown = (_error_text(key, spoken, _of_side(side, values)) for side, spoken in enumerate(languages))
    return recorded, shown


def _error_text(key: str, spoken: Language, values: Mapping[str, object]) -> ErrorText:
    parts = _entry(key, spoken)
    if not isinstance(parts, dict):
        raise TypeError(f"{key} is a text, not an error")
    return ErrorText(*(str(parts.get(name, "")).format(**values) for name in ErrorText._fields))


def _of_side(side: int, values: Mapping[str, object]) -> dict[str, object]:
    return {name: value[side] if isinstance(value, Bilingual) else value for name, value in values.items()}


def words(group: str, spoken: Language) -> dict[str, str]:
    """All texts of one group by name, as they stand: for a page that is filled with them elsewhere."""
    return {name: text for name, text in catalogue(spoken)[group].items() if isinstance(text, str)}


def translate_help(text: str) -> str:
    """A description that stands in the source in English, a setting's or a command's, in the reader's language."""
    spoken = language()
    return text if spoken == "en" else descriptions(spoken).get(text, text)


@cache
def descriptions(spoken: Language) -> dict[str, str]:
    """What `described` knows, by the English text."""
    return tomllib.loads((files(__name__) / f"help_{spoken}.toml").read_text(encoding="utf-8"))


@cache
def catalogue(spoken: Language) -> dict[str, Any]:
    """All of one language's messages by group, as its file has them."""
    return tomllib.loads((files(__name__) / f"{spoken}.toml").read_text(encoding="utf-8"))


def _entry(key: str, spoken: Language) -> object:
    group, _, name = key.partition(".")
    return catalogue(spoken)[group][name]
