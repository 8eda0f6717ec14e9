"""Parses the JSON of rows: an object with a key twice is refused, because only one of the two values would be read."""

from __future__ import annotations

import json
import sys
from typing import Any

from aegis.data.records import repeated
from aegis.messages import phrase

_FAULTS = {
    "Expecting value": "files.json_value",
    "Expecting ',' delimiter": "files.json_comma",
    "Expecting ':' delimiter": "files.json_colon",
    "Expecting property name": "files.json_name",
    "Illegal trailing comma": "files.json_trailing_comma",
    "Unterminated string": "files.json_string",
    "Invalid control character": "files.json_control",
    "Invalid \\": "files.json_escape",
    "Extra data": "files.json_more",
}
"""How the messages of Python's parser begin, and ours."""


class RepeatedKey(ValueError):
    """An object has a key twice."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RepeatedKey(repeated(key for key, _ in pairs) or "")
    return values


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises JSONDecodeError, RepeatedKey, ValueError for a number that is too long, and RecursionError."""


def fault(message: str) -> str:
    """Return what is wrong with broken JSON, in the reader's language, by the message of Python's parser."""
    return next((phrase(key) for start, key in _FAULTS.items() if message.startswith(start)), message)


def reason(error: ValueError | RecursionError) -> str:
    """Return in the reader's language why `DECODER` refuses a text."""
    if isinstance(error, json.JSONDecodeError):
        return phrase("files.broken", column=error.colno, error=fault(error.msg))
    if isinstance(error, RepeatedKey):
        return phrase("files.repeated_key", key=error.key)
    if isinstance(error, RecursionError):
        return phrase("files.deep_json")
    return phrase("files.long_number", digits=sys.get_int_max_str_digits())
