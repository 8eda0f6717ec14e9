"""Reads the values of a row or a message by key; a value that nothing reads is refused, unless it is harmless."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aegis.data.json_values import DECODER, reason
from aegis.data.rejects import RowError
from aegis.data.repetition import is_repetition
from aegis.messages import phrase

HARMLESS = frozenset((
    "id", "_id", "uuid", "idx", "index", "row_id", "prompt_id", "conversation_id", "conv_id", "session_id", "thread_id",
    "message_id", "sample_id", "doc_id", "hash", "sha1", "sha256", "md5",
    "source", "sources", "dataset", "dataset_name", "subset", "split", "origin", "url", "urls", "link",
    "license", "licence", "copyright", "attribution", "version", "revision",
    "category", "categories", "subcategory", "domain", "task_type", "type", "tag", "tags",
    "lang", "langs", "language", "languages", "locale", "language_score",
    "date", "created", "created_at", "updated_at", "timestamp", "time", "year",
    "author", "authors", "user_id", "annotator", "annotator_id", "worker_id",
    "model", "model_name", "generator", "generated_by",
    "turn", "turns", "num_turns", "turn_id", "n_tokens", "num_tokens", "token_count", "tokens_count",
    "length", "len", "char_count", "word_count", "score", "rating", "quality", "difficulty", "level",
    "meta", "metadata", "__index_level_0__", "cache_control",
))  # fmt: skip
"""Keys for a row's origin or kind. Their values are not part of a prompt, so they can be left out."""

_NUMBERED = frozenset(("task", "tasks", "topic", "topics"))
"""Keys whose numbers are ids, but whose texts may say what is to be done."""
_INDEX = re.compile(r"(?:unnamed: [0-9]+)?")
"""The names that pandas gives the column in which it numbers its rows."""

_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
_KINDS = {
    dict: "formats.kind_object",
    list: "formats.kind_list",
    bool: "formats.kind_boolean",
    int: "formats.kind_number",
    float: "formats.kind_number",
    str: "formats.kind_string",
}


class Fields:
    """The values of a row or a message by key.

    Args:
        values: the values.
        number: the message's number from 1; None for the row itself.
        left_out: is given the names of harmless keys that have values.
    """

    def __init__(
        self, values: Mapping[str, object], number: int | None = None, left_out: set[str] | None = None
    ) -> None:
        # in tables, null, "", [] and {} mean that a row does not have the value
        self._values = {key: value for key, value in values.items() if not _is_empty(value)}
        self._given = values
        self._label = "" if number is None else phrase("formats.label", number=number)
        self._taken: set[str] = set()
        self.left_out = set[str]() if left_out is None else left_out

    def __contains__(self, key: str) -> bool:
        """Whether there is a value that is not empty."""
        return key in self._values

    def first(self, keys: Sequence[str]) -> str | None:
        """Return the first of these keys that has a value; None if none has."""
        return next((key for key in keys if key in self._values), None)

    def take(self, key: str) -> object:
        """Return the value; None if it is missing or empty."""
        self._taken.add(key)
        return self._values.get(key)

    def text(self, key: str) -> str:
        """Return the value, which must be a text that is not blank.

        Raises:
            RowError: it is not.
        """
        self._taken.add(key)
        if key not in self._given:
            raise RowError(phrase("formats.missing_key", label=self._label, key=key), of_columns=True)
        value = self._given[key]
        if not isinstance(value, str):
            raise RowError(phrase("formats.not_a_string", label=self._label, key=key, value=kind(value)))
        if not value.strip():
            raise RowError(phrase("formats.empty", label=self._label, key=key))
        return self.checked(key, value)

    def structure(self, key: str) -> object:
        """Return the value, parsed if it is JSON in a string; None if it is missing or an empty string."""
        self._taken.add(key)
        value = self._given.get(key)
        if not isinstance(value, str) or not value:
            return None if value == "" else value
        try:
            return DECODER.decode(value)
        except (ValueError, RecursionError) as error:
            raise self.error("formats.not_json", key=key, error=reason(error)) from None

    def checked(self, key: str, value: str) -> str:
        """Return `value` after a check that it has no character that a tokenizer cannot encode.

        Raises:
            RowError: it has one.
        """
        if match := _UNENCODABLE.search(value):
            what = phrase("formats.nul" if match.group() == "\0" else "formats.surrogate")
            raise self.error("formats.bad_character", key=key, what=what, position=match.start() + 1)
        return value

    def error(self, message: str, /, **values: object) -> RowError:
        """Make a RowError whose text begins with the place."""
        return RowError(phrase(message, label=self._label, **values))

    def finish(self, used: Sequence[str] = ()) -> None:
        """Refuse values that were not read.

        Args:
            used: the texts of the record, in order. A column that repeats one of them, or all, can be left out.

        Raises:
            RowError: a key is neither known nor harmless.
        """
        left = [key for key in self._values if key not in self._taken]
        harmless = [key for key in left if _is_harmless(key, self._values[key])] if left else left
        self.left_out.update(harmless)
        if len(left) > len(harmless):
            read = [value for key in self._taken if isinstance(value := self._values.get(key), str)]
            left = [
                key
                for key in left
                if key not in harmless
                and not is_repetition(self._values[key], used)
                and not any(is_repetition(self._values[key], [text]) for text in read)
            ]
            if left:
                raise RowError(phrase("formats.unused_keys", label=self._label, keys=names(left)), of_columns=True)


def kind(value: object) -> str:
    """Return the kind of a value in the reader's language."""
    if value is None:
        return "null"
    key = _KINDS.get(type(value))
    return phrase(key) if key else type(value).__name__


def names(keys: object) -> str:
    """Return the first keys as text for a message."""
    quoted = [repr(key) for key in keys] if isinstance(keys, (list, dict)) else []
    return ", ".join(quoted[:8]) + (" ..." if len(quoted) > 8 else "") if quoted else "(none)"


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _is_harmless(key: str, value: object) -> bool:
    name = key.lower()
    is_number = isinstance(value, int | float) or (isinstance(value, str) and value.isdecimal())
    return name in HARMLESS or (is_number and (name in _NUMBERED or _INDEX.fullmatch(name) is not None))
