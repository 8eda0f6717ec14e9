"""Returns AEGIS's messages by key in the reader's language.

There is one file per language, en.toml and ja.toml, with the same keys and the same placeholders. A key is
"module.name". Commands and settings have their English descriptions in the source; help_ja.toml has the Japanese ones
by the English text, so a changed description has no translation until it is translated again.
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
    """A text in every language: a report records its key, values and English, and a reader sees his own language.

    It is a message with its values, a text that is the same in every language, or several texts joined.

    Attributes:
        key: the key of a message or an error, "module.name", or of an error's part, "module.name.what"; else "".
        values: the values of the placeholders; a value may be a `Bilingual` itself.
        words: the text, if there is no key.
        parts, separator: the joined texts, if there are several.
        capital: whether the first letter is a capital.
    """

    key: str = ""
    values: Mapping[str, object] = field(default_factory=dict)
    words: str = ""
    parts: tuple[Bilingual, ...] = ()
    separator: str = ""
    capital: bool = False

    @classmethod
    def same(cls, text: str) -> Bilingual:
        """Make a text that is the same in every language, or known in only one."""
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
        """Return the text as JSON: its English, and the key and values for `from_record`."""
        record: dict[str, Any] = {"english": self.english}
        if self.key:
            record |= {"key": self.key, "values": {name: _as_json(value) for name, value in self.values.items()}}
        elif self.parts:
            record |= {"separator": self.separator, "parts": [part.recorded() for part in self.parts]}
        return record | ({"capital": True} if self.capital else {})

    @classmethod
    def from_record(cls, record: object) -> Bilingual:
        """Read a recorded text; it stays English in every language if its key or placeholders do not exist any more."""
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
    """Return the reader's language."""
    names = (VARIABLE, "LC_ALL", "LC_MESSAGES", "LANG")
    wanted = next((text for name in names if (text := os.environ.get(name))), None) or locale.getlocale()[0] or ""
    found = wanted.replace("-", "_").partition("_")[0].lower()
    # Windows sets none of the variables, and its locale has the language's English name
    found = {"japanese": "ja"}.get(found, found)
    return "ja" if found == "ja" else "en"


def phrase(key: str, /, **values: object) -> str:
    """Return the message `key` with its placeholders filled."""
    text = _entry(key, language())
    if not isinstance(text, str):
        raise TypeError(f"{key} is an error, not a text")
    return fill(text, values)


def bilingual(key: str, /, **values: object) -> Bilingual:
    """Return the message `key` with its values, for a report and for the reader.

    A value that JSON cannot hold, and that is not a `Bilingual`, is replaced by its `str`.
    """
    if not isinstance(_entry(key, "en"), str):
        raise TypeError(f"{key} is an error, not a text")
    return Bilingual(key=key, values={name: _plain(value) for name, value in values.items()})


def error_texts(key: str, /, **values: object) -> tuple[Bilingual, ErrorText]:
    """Return the error `key` with its values, as one text and as its three parts."""
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
    """Return all messages of one group by name, with their placeholders, for a page's template."""
    return {name: text for name, text in catalogue(spoken)[group].items() if isinstance(text, str)}


def translate_help(text: str) -> str:
    """Translate the English description of a setting or a command into the reader's language."""
    spoken = language()
    return text if spoken == "en" else descriptions(spoken).get(text, text)


@cache
def descriptions(spoken: Language) -> dict[str, str]:
    """Return the translated descriptions by their English text."""
    return tomllib.loads((files(__name__) / f"help_{spoken}.toml").read_text(encoding="utf-8"))


@cache
def catalogue(spoken: Language) -> dict[str, Any]:
    """Return all messages of one language by group."""
    return tomllib.loads((files(__name__) / f"{spoken}.toml").read_text(encoding="utf-8"))


def _entry(key: str, spoken: Language) -> Any:
    group, _, name = key.partition(".")
    table = catalogue(spoken)[group]
    if name in table:
        return table[name]
    error, _, part = name.rpartition(".")
    return table[error][part]
