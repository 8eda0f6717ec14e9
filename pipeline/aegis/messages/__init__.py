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
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

from aegis.messages.safe import fill, shown

Language = Literal["en", "ja"]
LANGUAGES: tuple[Language, ...] = ("en", "ja")
VARIABLE = "AEGIS_LANG"


@dataclass(frozen=True)
class Bilingual:
    """One text for a report, which is in English for every reader, and for the reader, in any language.

    It is a text of the catalogue with its values, words that are the same in every language, or several texts in a row.

    Attributes:
        key: of the catalogue, else "": of a text or an error, "module.name", or of an error's part, "module.name.what".
        values: what fills the places; a value may be such a text itself.
        words: the text where there is no key.
        parts, separator: the texts in a row where there are several.
        capital: whether the first letter is written as at the start of a sentence.
    """

    key: str = ""
    values: Mapping[str, object] = field(default_factory=dict)
    words: str = ""
    parts: tuple[Bilingual, ...] = ()
    separator: str = ""
    capital: bool = False

    @classmethod
    def same(cls, text: str) -> Bilingual:
        """What is the same in every language, or is known in one only."""
        return cls(words=text)

    @classmethod
    def joined(cls, separator: str, texts: Iterable[Bilingual]) -> Bilingual:
        return cls(parts=tuple(texts), separator=separator)

    @property
    def english(self) -> str:
        return self.in_language("en")

    @property
    def shown(self) -> str:
        """The text in the reader's language."""
        return self.in_language(language())

    def in_language(self, spoken: Language) -> str:
        if self.key:
            given = {
                name: value.in_language(spoken) if isinstance(value, Bilingual) else value
                for name, value in self.values.items()
            }
            entry = _entry(self.key, spoken)
            lines = [entry] if isinstance(entry, str) else [entry.get(name) for name in ErrorText._fields]
            text = "\n".join(filter(None, (line and fill(line, given) for line in lines)))
        else:
            text = shown(self.words) or self.separator.join(part.in_language(spoken) for part in self.parts)
        return text[:1].upper() + text[1:] if self.capital else text

    def capitalised(self) -> Bilingual:
        return replace(self, capital=True)

    def after(self, start: str) -> Bilingual:
        return Bilingual(parts=(Bilingual(words=start), self))

    def followed_by(self, text: str) -> Bilingual:
        return Bilingual(parts=(self, Bilingual(words=text)))

    def recorded(self) -> dict[str, Any]:
        """The text as JSON: its English, and what `from_record` makes it in another language from."""
        record: dict[str, Any] = {"english": self.english}
        if self.key:
            record |= {"key": self.key, "values": {name: _as_json(value) for name, value in self.values.items()}}
        elif self.parts:
            record |= {"separator": self.separator, "parts": [part.recorded() for part in self.parts]}
        return record | ({"capital": True} if self.capital else {})

    @classmethod
    def from_record(cls, record: object) -> Bilingual:
        """A recorded text; its English in every language where its key or its values are not known any more."""
        if not isinstance(record, Mapping):
            return cls.same(str(record))
        english = cls.same(str(record.get("english", "")))
        key, values, parts = (record.get(name) for name in ("key", "values", "parts"))
        capital = record.get("capital") is True
        if isinstance(key, str) and isinstance(values, Mapping):
            known = {
                str(name): cls.from_record(value) if isinstance(value, Mapping) else value
                for name, value in values.items()
            }
            found = cls(key=key, values=known, capital=capital)
        elif isinstance(parts, list):
            found = cls(
                parts=tuple(map(cls.from_record, parts)), separator=str(record.get("separator", "")), capital=capital
            )
        else:
            return english
        try:
            for spoken in LANGUAGES:
                found.in_language(spoken)
        except (LookupError, ValueError, TypeError):
            return english
        return found


def _as_json(value: object) -> object:
    if isinstance(value, Bilingual):
        return value.recorded()
    if value is None or isinstance(value, str | bool | int | float | list | dict):
        return value
    return str(value)


class ErrorText(NamedTuple):
    """An error as three short texts; `why` and `fix` may be empty."""

    what: Bilingual
    why: Bilingual
    fix: Bilingual


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
    return fill(text, values)


def bilingual(key: str, /, **values: object) -> Bilingual:
    """The text `key` with its places filled, for a report and for the reader; so are texts that fill a place.

    A value that is neither a plain one nor a text stands for its `str`: nothing of it is kept.
    """
    if not isinstance(_entry(key, "en"), str):
        raise TypeError(f"{key} is an error, not a text")
    return Bilingual(key=key, values={name: _plain(value) for name, value in values.items()})


def error_texts(key: str, /, **values: object) -> tuple[Bilingual, ErrorText]:
    """The error `key` with its places filled, and its three parts."""
    parts = _entry(key, "en")
    if not isinstance(parts, dict):
        raise TypeError(f"{key} is a text, not an error")
    given = {name: _plain(value) for name, value in values.items()}
    texts = (
        Bilingual(key=f"{key}.{name}", values=given) if name in parts else Bilingual() for name in ErrorText._fields
    )
    return Bilingual(key=key, values=given), ErrorText(*texts)


def _plain(value: object) -> object:
    if value is None or isinstance(value, Bilingual | str | bool | int | float | list | tuple | dict):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else str(value)


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


def _entry(key: str, spoken: Language) -> Any:
    group, _, name = key.partition(".")
    table = catalogue(spoken)[group]
    if name in table:
        return table[name]
    error, _, part = name.rpartition(".")
    return table[error][part]
