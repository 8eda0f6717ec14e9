"""Reads rows from JSON in its usual forms: one object per line, an array, an object that holds the array, or objects
over several lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from aegis.data.data_file import DataFile
from aegis.data.json_stream import JsonStream
from aegis.data.json_values import DECODER, reason
from aegis.data.lines import read_lines
from aegis.data.records import Row
from aegis.data.rejects import Rejects
from aegis.data.unpacking import open_stream
from aegis.messages import phrase

HOLDERS = ("data", "rows", "train", "examples", "items", "instances", "records")
"""Keys under which a document may hold the array of its rows."""

_HEAD_BYTES = 4096
_HOLDS_ROWS = re.compile(rb'\{\s*"(' + "|".join(HOLDERS).encode() + rb')"\s*:\s*\[')


def json_rows(data: DataFile, rejects: Rejects) -> Iterator[tuple[Row, int | None]]:
    """Yield each row of a .jsonl, .ndjson or .json file, and the number of bytes read so far, or None if unknown.

    Raises:
        DataError: the file is one JSON document, and broken, or a value in it is larger than a row may be.
    """
    if _is_document(data):
        yield from ((row, None) for row in _document_rows(data))
        return
    for line in read_lines(data, rejects):
        text = (line.text or "").strip()
        if not text:
            continue
        try:
            value = DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            rejects.add(line.where, reason(error))
        else:
            yield Row(line.where, value), line.end


def _is_document(data: DataFile) -> bool:
    """Whether the file must be parsed at once: an array, an object that holds one, or objects over several lines."""
    with open_stream(data) as (file, _):
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES].removeprefix(b"\xef\xbb\xbf").lstrip()
    lines = (line for line in read_lines(data, Rejects("")) if line.text is None or line.text.strip())
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
    for key in HOLDERS:
        rows = value.get(key)
        rest = (other for name, other in value.items() if name != key)
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            return rows if not any(isinstance(other, list | dict) for other in rest) else None
    return None


def _document_rows(data: DataFile) -> Iterator[Row]:
    word = phrase("files.item")
    for number, item in enumerate(_items(data), 1):
        yield Row(f"{data.path}:{word} {number}", item)


def _items(data: DataFile) -> Iterator[Any]:
    """The items of the array, or of the array that the object holds, or the values one behind the other."""
    stream = JsonStream(data)
    if stream.peek() == "[":
        yield from stream.items()
        stream.end()
    elif (holder := _holder(data)) is not None:
        for key in stream.members():
            if key == holder:
                yield from stream.items()
            else:
                stream.value()
    else:
        while stream.peek():
            yield stream.value()


def _holder(data: DataFile) -> str | None:
    """As `_held`, of a document that may be too large for memory: the key of its rows, if it is one that holds rows."""
    stream, arrays, others = JsonStream(data), dict[str, bool](), False
    if stream.peek() != "{":
        return None
    for key in stream.members():
        if key in HOLDERS and stream.peek() == "[":
            kinds = {isinstance(item, dict) for item in stream.items()}
            arrays[key] = kinds == {True}
        else:
            others |= isinstance(stream.value(), list | dict)
    if stream.peek() or others or len(arrays) != 1:
        return None
    ((key, holds_rows),) = arrays.items()
    return key if holds_rows else None
