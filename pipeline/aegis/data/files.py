"""The kinds of file that hold rows, each read in bounded memory."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from aegis.data.lines import MAX_LINE_BYTES, decode_all, read_lines
from aegis.data.rejects import Rejects
from aegis.errors import DataError, UsageError
from aegis.messages import phrase

MAX_ARRAY_BYTES = 1 << 30
"""A JSON array has to be parsed whole; JSON Lines may be of any size."""


class Row(NamedTuple):
    """One row as it was read: `where` is for people (file:line), `value` whatever the file held."""

    where: str
    value: object


@dataclass
class FileSource:
    """A file on this machine, measured in bytes."""

    path: Path
    reader: Callable[[FileSource, Rejects], Iterator[Row]]
    position: float = 0
    unit: str = "B"
    name: str = field(init=False)
    total: float = field(init=False)

    def __post_init__(self) -> None:
        self.name = str(self.path)
        try:
            self.total = self.path.stat().st_size
            self.path.open("rb").close()
        except OSError as error:
            raise UsageError("files.unreadable", path=self.path, error=str(error)) from error

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        return self.reader(self, rejects)


def _json_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """JSON Lines, or one JSON array of objects in a file called .json."""
    if source.path.suffix.lower() == ".json" and _starts_array(source.path):
        yield from _array_rows(source)
        return
    for line in read_lines(source.path, rejects):
        source.position = line.end
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
            yield Row(line.where, value)


def _broken(error: json.JSONDecodeError) -> str:
    return phrase("files.broken", column=error.colno, error=error.msg.removesuffix(" at"))


def _starts_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array_rows(source: FileSource) -> Iterator[Row]:
    if source.total > MAX_ARRAY_BYTES:
        raise DataError("files.huge_array", name=source.path.name, source_total=source.total / 1000000000.0)
    text = decode_all(source.path)
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            "files.broken_array", source_name=source.name, lineno=error.lineno, broken=_broken(error)
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError("files.broken_json", source_name=source.name, error=error) from error
    word = phrase("files.item")
    for number, item in enumerate(items, 1):
        source.position = source.total * number / len(items)
        yield Row(f"{source.name}:{word} {number}", item)


def _text_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """Plain text: documents stand apart by blank lines."""
    where, document, size, usable = "", list[str](), 0, True
    for line in read_lines(source.path, rejects):
        source.position = line.end
        if line.text is not None and not line.text.strip():
            if document and usable:
                yield Row(where, {"text": "\n".join(document)})
            where, document, size, usable = "", [], 0, True
            continue
        where = where or line.where
        if line.text is None or not usable:
            usable = False  # a document with a hole is not the document
            continue
        document.append(line.text.rstrip("\r\n"))
        size += len(document[-1])
        if size > MAX_LINE_BYTES:
            rejects.add(where, phrase("files.long_document", characters=MAX_LINE_BYTES))
            usable, document = False, []
    if document and usable:
        yield Row(where, {"text": "\n".join(document)})


def _csv_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """Comma-separated values with a header line; a row's place is the line it ends on."""

    def texts() -> Iterator[str]:
        for line in read_lines(source.path, rejects):
            source.position = line.end
            if line.text is not None:
                yield line.text

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.DictReader(texts(), strict=True)
    try:
        for values in reader:
            where = f"{source.name}:{reader.line_num}"
            if None in values:
                rejects.add(where, phrase("files.too_many_fields"))
                continue
            yield Row(where, values)
    except csv.Error as error:
        raise DataError("files.broken_csv", source_name=source.name, line_num=reader.line_num, error=error) from error


def _parquet_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            word, number = phrase("files.row"), 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    source.position = source.total * number / file.metadata.num_rows
                    yield Row(f"{source.name}:{word} {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError("files.broken_parquet", source_name=source.name, error=str(error)) from error


READERS: dict[str, Callable[[FileSource, Rejects], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
