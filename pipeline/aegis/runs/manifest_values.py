"""Refuses values of a manifest that AEGIS has not written: a manifest may be damaged, edited, or a stranger's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PureWindowsPath
from typing import Any


def refuse_unusable(document: object) -> None:
    """Refuse what can be neither hashed nor computed with: half a character, or an integer beyond 64 bits.

    Raises:
        ValueError: the document has such a value.
    """
    text = json.dumps(document, ensure_ascii=False)
    text.encode()
    json.loads(text, parse_int=_int64)


def _int64(digits: str) -> int:
    if not -(1 << 63) <= (number := int(digits)) < 1 << 63:
        raise ValueError(f"{digits[:20]}…")
    return number


def mapping(document: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the JSON object of a key.

    Raises:
        KeyError, TypeError: there is none, or it is no object.
    """
    if not isinstance(found := document[key], dict):
        raise TypeError(key)
    return found


def inside(name: str) -> str:
    """Return the name of a file in the manifest's directory.

    Raises:
        ValueError: the file would be outside.
    """
    if PureWindowsPath(name).anchor or name.startswith("/") or ".." in PureWindowsPath(name).parts:
        raise ValueError(name)
    return name
