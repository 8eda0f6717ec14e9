"""Reads rows from JSON in its usual forms: one object per line, an array, an object that holds the array, or objects
over several lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from aegis.data.lines import decode_all, read_lines
from aegis.data.rejects import Rejects
from aegis.data.rows import Row
from aegis.data.streams import open_stream
from aegis.errors import DataError
from aegis.messages import phrase

MAX_DOCUMENT_BYTES = 1 << 30
"""A JSON document must be parsed at once; JSON Lines may have any size."""

_HOLDERS = ("data", "rows", "train", "examples", "items", "instances", "records")
"""Keys under which a document may hold the array of its rows."""

_HEAD_BYTES = 4096
_HOLDS_ROWS = re.compile(rb'\{\s*"(' + "|".join(_HOLDERS).encode() + rb')"\s*:\s*\[')
_SPACE = re.compile(r"[ \t\n\r]*")


def json_rows(path: Path, rejects: Rejects) -> Iterator[tuple[Row, int | None]]:
    """Yield each row of a .jsonl, .ndjson or .json file, and the number of bytes read so far, or None if unknown.

    Raises:
        DataError: the file is one JSON document, and broken or too large.
    """
    if _is_document(path):
        yield from ((row, None) for row in _document_rows(path))
        return
    for line in read_lines(path, rejects):
        text = (line.text or "").strip()
        if not text:
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            rejects.add(line.where, _broken(error))
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
            rejects.add(line.where, phrase("files.unreadable_json", error=error))
        else:
            yield Row(line.where, value), line.end


def _is_document(path: Path) -> bool:
    """Whether the file must be parsed at once: an array, an object that holds one, or objects over several lines."""
    with open_stream(path) as (file, _):
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    lines = (line for line in read_lines(path, Rejects("")) if line.text is None or line.text.strip())
    first, second = [*(line.text for line in islice(lines, 2)), "", ""][:2]
    if first is None:
        # the line is too long for a row
        return head.startswith(b"[") or _HOLDS_ROWS.match(head) is not None
    try:
        value = json.loads(first)
    except RecursionError:
        return False
    except ValueError:
        # an array over several lines, or an object that continues with another key
        text, following = first.strip(), (second or "").lstrip()
        begins = text.startswith("{") and text.endswith(("{", "[", ",")) and not text.endswith("},")
        goes_on = following.startswith(('"', "}", "]")) or (text.endswith("[") and following.startswith(("{", "[")))
        return text.startswith("[") or (begins and goes_on)
    if isinstance(value, list):
        return not (second or "").lstrip().startswith("[")
    return isinstance(value, dict) and not second and _held(value) is not None


def _held(value: Mapping[str, Any]) -> list[Any] | None:
    """Return the array of rows in a document; None if the document has other arrays or objects."""
    for key in _HOLDERS:
        rows = value.get(key)
        rest = (other for name, other in value.items() if name != key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows if not any(isinstance(other, list | dict) for other in rest) else None
    return None


def _document_rows(path: Path) -> Iterator[Row]:
    text = decode_all(path, MAX_DOCUMENT_BYTES)
    items = list(_documents(path, text))
    if len(items) == 1 and isinstance(items[0], list):
        items = items[0]
    elif len(items) == 1 and isinstance(items[0], dict) and (held := _held(items[0])) is not None:
        items = held
    word = phrase("files.item")
    for number, item in enumerate(items, 1):
        yield Row(f"{path}:{word} {number}", item)


def _documents(path: Path, text: str) -> Iterator[Any]:
    """Yield the JSON values of a text, one after the other."""
    decoder, at = json.JSONDecoder(), 0
    try:
        while True:
            space = _SPACE.match(text, at)
            at = space.end() if space else at
            if at >= len(text):
                return
            value, at = decoder.raw_decode(text, at)
            yield value
    except json.JSONDecodeError as error:
        raise DataError(
            "files.broken_document", source_name=path, lineno=error.lineno, broken=_broken(error)
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError("files.broken_json", source_name=path, error=error) from error


def _broken(error: json.JSONDecodeError) -> str:
    return phrase("files.broken", column=error.colno, error=error.msg.removesuffix(" at"))
