"""Reads rows from files of several formats in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aegis.data.csv_rows import csv_rows
from aegis.data.data_file import DataFile
from aegis.data.json_rows import json_rows
from aegis.data.lines import Line, read_lines
from aegis.data.records import Row
from aegis.data.rejects import Rejects
from aegis.data.unpacking import PACKED
from aegis.errors import DataError, UsageError
from aegis.limits import PARQUET_BYTES, PARQUET_SECONDS, ROW_BYTES
from aegis.messages import phrase

Reader = Callable[["FileSource", Rejects], Iterator[Row]]


@dataclass
class FileSource:
    """A file on this machine, measured in bytes; rows that are read after `sha256` are those that were hashed."""

    path: Path
    reader: Reader
    position: float = 0
    unit: str = "B"
    name: str = field(init=False)
    total: float = field(init=False)
    data: DataFile = field(init=False)

    def __post_init__(self) -> None:
        self.name, self.data = str(self.path), DataFile(self.path)
        try:
            self.total = self.path.stat().st_size
            self.path.open("rb").close()
        except OSError as error:
            raise UsageError("files.unreadable", path=self.path, error=str(error)) from error

    def sha256(self) -> str:
        hashes = DataFile(self.path).hashes()
        self.data = DataFile(self.path, hashes.blocks)
        return hashes.sha256

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        return self.reader(self, rejects)


def _json_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    for row, place in json_rows(source.data, rejects):
        source.position = source.total if place is None else place
        yield row


def _text_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """Read plain text: blank lines separate documents."""
    where, document, size, usable = "", list[str](), 0, True
    for line in _lines_of_text(source, rejects):
        if line.text is not None and not line.text.strip():
            if document and usable:
                yield Row(where, {"text": "\n".join(document)})
            where, document, size, usable = "", [], 0, True
            continue
        where = where or line.where
        if line.text is None or not usable:
            usable = False  # a document with a missing line is not used
            continue
        document.append(line.text)
        size += len(line.text)
        if size > ROW_BYTES:
            rejects.add(where, phrase("files.long_document", characters=ROW_BYTES))
            usable, document = False, []
    if document and usable:
        yield Row(where, {"text": "\n".join(document)})


def _lines_of_text(source: FileSource, rejects: Rejects) -> Iterator[Line]:
    """Read lines without their ends; a carriage return within a line ends one too."""
    for line in read_lines(source.data, rejects):
        source.position = line.end
        if line.text is None:
            yield line
        else:
            yield from (line._replace(text=text) for text in line.text.rstrip("\r\n").split("\r"))


def _tsv_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    return _csv_rows(source, rejects, delimiter="\t")


def _csv_rows(source: FileSource, rejects: Rejects, delimiter: str = ",") -> Iterator[Row]:
    for row, place in csv_rows(source.data, rejects, delimiter):
        source.position = place
        yield row
    source.position = source.total


def _parquet_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """Rows of a file that may be a thousand times its size unpacked: another process reads it, in bounded memory."""
    from aegis.llama_cpp.confined import Confined, Ended, Overdue, TooLarge

    word, number, reader = phrase("files.row"), 0, Confined("aegis.data.parquet_worker")
    blocks = source.data.blocks
    asked: dict[str, object] = {"path": str(source.path.absolute()), "name": source.name, "blocks": blocks}
    try:
        for answer in reader.stream(asked, seconds=PARQUET_SECONDS, memory_bytes=PARQUET_BYTES):
            for row in answer.fields["rows"]:
                number += 1
                source.position = source.total * number / answer.fields["of"]
                if row is None:
                    rejects.add(f"{source.name}:{word} {number}", phrase("files.long_row", characters=ROW_BYTES))
                else:
                    yield Row(f"{source.name}:{word} {number}", row)
    except (TooLarge, Overdue, Ended) as error:
        what = phrase("files.parquet_bomb", most=PARQUET_BYTES / 1e9, seconds=PARQUET_SECONDS)
        raise DataError("files.broken_parquet", source_name=source.name, error=what) from error
    finally:
        reader.close()


READERS: dict[str, Reader] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".tsv": _tsv_rows,
    ".parquet": _parquet_rows,
}
"""Readers by the suffix of a file's name; a text file may also be packed, such as data.jsonl.gz."""


def reader_of(path: Path) -> Reader | None:
    """Return the reader for a file of this name; None if there is none."""
    suffix = path.suffix.lower()
    if suffix not in PACKED:
        return READERS.get(suffix)
    inner = Path(path.stem).suffix.lower()
    return None if inner == ".parquet" else READERS.get(inner)


def kinds() -> str:
    """Return the readable suffixes as text for a message."""
    return ", ".join((*sorted(READERS), *(f".jsonl{packed}" for packed in PACKED)))
