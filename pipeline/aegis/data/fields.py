"""Reads the values of a row or a message by key; a value that nothing reads is refused, unless it is harmless."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from aegis.data.rejects import RowError
from aegis.errors import UsageError
from aegis.messages import phrase

IGNORE = "ignore"
"""The word in `--columns NAME=ignore` for a column that is left out on purpose."""

HARMLESS = frozenset((
    "id", "_id", "uuid", "idx", "index", "row_id", "prompt_id", "conversation_id", "conv_id", "session_id", "thread_id",
    "message_id", "sample_id", "doc_id", "hash", "sha1", "sha256", "md5",
    "source", "sources", "dataset", "dataset_name", "subset", "split", "origin", "url", "urls", "link",
    "license", "licence", "copyright", "attribution", "version", "revision",
    "category", "categories", "subcategory", "topic", "topics", "domain", "genre", "task", "tasks", "task_type", "type",
    "tag", "tags", "keywords", "lang", "langs", "language", "languages", "locale", "language_score",
    "date", "created", "created_at", "updated_at", "timestamp", "time", "year",
    "author", "authors", "user_id", "annotator", "annotator_id", "worker_id",
    "model", "model_name", "generator", "generated_by",
    "turn", "turns", "num_turns", "turn_id", "n_tokens", "num_tokens", "token_count", "tokens_count",
    "length", "len", "char_count", "word_count", "score", "rating", "quality", "difficulty", "level",
    "meta", "metadata", "__index_level_0__", "cache_control",
))  # fmt: skip
"""Keys for a row's origin or topic. Their values are not part of a prompt, so they can be left out."""

_UNENCODABLE = re.compile("[\x00\ud800-\udfff]")
_KINDS = {
    dict: "formats.kind_object",
    list: "formats.kind_list",
    bool: "formats.kind_boolean",
    int: "formats.kind_number",
    float: "formats.kind_number",
    str: "formats.kind_string",
}


class Columns:
    """A user's own names for keys, such as `question=instruction` and `notes=ignore`.

    Args:
        pairs: NAME=KNOWN; NAME is a key of rows or messages, KNOWN a known key or "ignore".
        known: the known keys.

    Raises:
        UsageError: a pair does not have this form, or KNOWN is not a known key.
    """

    def __init__(self, pairs: Iterable[str], known: Collection[str]) -> None:
        self._names: dict[str, str] = {}
        for pair in pairs:
            name, equals, meaning = (part.strip() for part in pair.partition("="))
            if not (name and equals and meaning) or name in self._names:
                raise UsageError("columns.malformed", pair=pair)
            if meaning != IGNORE and meaning not in known:
                near = difflib.get_close_matches(meaning, known, n=1)
                hint = phrase("config.nearest", name=near[0]) if near else ""
                raise UsageError(
                    "columns.unknown", pair=pair, meaning=meaning, hint=hint, known=", ".join(sorted(known))
                )
            self._names[name] = meaning

    def renamed(self, values: Mapping[str, object]) -> Mapping[str, object]:
        """Return the values under known names, without the ignored ones."""
        if not self._names:
            return values
        found: dict[str, object] = {}
        for name, value in values.items():
            meaning = self._names.get(name, name)
            if meaning == IGNORE:
                continue
            if meaning in found or (meaning != name and meaning in values and meaning not in self._names):
                raise RowError(phrase("columns.twice", name=name, meaning=meaning))
            found[meaning] = value
        return found


class Fields:
    """The values of a row or a message by key. `number` is the message's number from 1; None for the row itself."""

    def __init__(self, values: Mapping[str, object], number: int | None = None) -> None:
        # in tables, null, "", [] and {} mean that a row does not have the value
        self._values = {key: value for key, value in values.items() if not _is_empty(value)}
        self._given = values
        self._label = "" if number is None else phrase("formats.label", number=number)
        self._taken: set[str] = set()

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
            raise RowError(phrase("formats.missing_key", label=self._label, key=key))
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
            return json.loads(value)
        except (ValueError, RecursionError):
            raise self.error("formats.not_json", key=key) from None

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

    def finish(self, used: Iterable[str] = ()) -> None:
        """Refuse values that were not read.

        Args:
            used: the texts of the record. A column that repeats them, or a part of them, can be left out.

        Raises:
            RowError: a key is neither known nor harmless.
        """
        left = [
            key
            for key, value in self._values.items()
            if key not in self._taken and key.lower() not in HARMLESS and not _is_repetition(value, list(used))
        ]
        if left:
            raise self.error("formats.unused_keys", keys=names(left))


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


def _is_repetition(value: object, used: list[str]) -> bool:
    """Whether a text is contained in one of the used texts, or contains all of them, as a rendered chat does."""
    if not isinstance(value, str) or not used:
        return False
    stripped = value.strip()
    return any(stripped in text for text in used) or all(text.strip() in value for text in used)
