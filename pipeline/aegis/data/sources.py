"""Where rows come from: a local file or a Hub dataset, one row at a time, each with its place."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from aegis.data.lines import MAX_LINE_BYTES, decode_all, read_lines
from aegis.data.rejects import Rejects
from aegis.errors import DataError, EnvironmentFault, UsageError

MAX_ARRAY_BYTES = 1 << 30  # a JSON array has to be parsed whole; JSON Lines of any size need not


class Row(NamedTuple):
    """One row as it was read: `where` is for people (file:line), `value` whatever the file held."""

    where: str
    value: object


class Source(Protocol):
    """`position` moves towards `total` (both in `unit`) while `rows` is being read."""

    name: str
    total: float
    unit: str
    position: float

    def sha256(self) -> str:
        """A digest of all rows, in hex."""
        ...

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        """Every row that could be read; the others go to `rejects`."""
        ...


def open_source(source: str | Path, *, split: str = "train", revision: str | None = None) -> Source:
    """Find a file, or a Hub dataset named `owner/name`.

    Raises:
        UsageError: no such file, a directory, a kind of file that is not read, no such dataset.
        EnvironmentFault: the Hub could not be reached.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        raise UsageError(f"{path} is a directory, not a dataset.", fix="Name one file in it.")
    if path.is_file():
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise UsageError(
                f"{path.name}: files that end in {path.suffix!r} are not read.",
                fix=f"Give one of {', '.join(sorted(_READERS))}.",
            )
        return FileSource(path, reader)
    if path.suffix.lower() not in _READERS and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(source)):
        return _open_hub(str(source), split, revision)
    raise UsageError(f"There is no file {path}.", fix="Give a file that exists, or a Hub dataset's id as owner/name.")


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
            raise UsageError(f"{self.path} cannot be read.", why=str(error)) from error

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        return self.reader(self, rejects)


@dataclass
class HubSource:
    """A Hub dataset, on disk in the `datasets` cache and memory-mapped."""

    name: str
    data: Any
    unit: str = "rows"
    position: float = 0

    def __post_init__(self) -> None:
        self.total: float = len(self.data)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for row in self.data:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def rows(self, rejects: Rejects) -> Iterator[Row]:
        for number, row in enumerate(self.data, 1):
            self.position = number
            yield Row(f"{self.name}:row {number}", row)


def _json_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    """JSON Lines, or one JSON array of objects in a file called .json."""
    if source.path.suffix.lower() == ".json" and _starts_array(source.path):
        yield from _array_rows(source)
        return
    for line in read_lines(source.path, rejects):
        source.position = line.end
        if line.text is None or not line.text.strip():
            continue
        try:
            yield Row(line.where, json.loads(line.text))
        except json.JSONDecodeError as error:
            rejects.add(line.where, f"broken JSON: {error.msg} at column {error.colno}")
        except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 10,000 brackets
            rejects.add(line.where, f"JSON that cannot be read: {error}")


def _starts_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


def _array_rows(source: FileSource) -> Iterator[Row]:
    if source.total > MAX_ARRAY_BYTES:
        raise DataError(
            f"{source.path.name} is one JSON array of {source.total / 1e9:.1f} GB.",
            why="An array has to be held in memory whole.",
            fix="Write it as JSON Lines: one object a line, the file called .jsonl.",
        )
    text = decode_all(source.path)
    try:
        items = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{source.name}:{error.lineno}: broken JSON: {error.msg} at column {error.colno}.",
            why="The file begins with '[', so it was read as one JSON array.",
            fix="Correct it there. For one object a line, call the file .jsonl.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source.name}: JSON that cannot be read: {error}.") from error
    for number, item in enumerate(items, 1):
        source.position = source.total * number / len(items)
        yield Row(f"{source.name}:item {number}", item)


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
            rejects.add(where, f"a document of more than {MAX_LINE_BYTES:,} characters without a blank line")
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
                rejects.add(where, "more fields than the header names")
                continue
            yield Row(where, values)
    except csv.Error as error:
        raise DataError(f"{source.name}:{reader.line_num}: not CSV: {error}.") from error


def _parquet_rows(source: FileSource, rejects: Rejects) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        with pyarrow.parquet.ParquetFile(source.path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    source.position = source.total * number / file.metadata.num_rows
                    yield Row(f"{source.name}:row {number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source.name} is not a readable Parquet file.", why=str(error)) from error


_READERS: dict[str, Callable[[FileSource, Rejects], Iterator[Row]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".txt": _text_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _open_hub(dataset: str, split: str, revision: str | None) -> HubSource:
    """Fetch a Hub dataset; `datasets` 4 and later run no code out of a dataset's repository."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    try:
        data = datasets.load_dataset(dataset, split=split, revision=revision)
    except (datasets.exceptions.DatasetNotFoundError, ValueError) as error:
        raise UsageError(
            f"{dataset} is neither a file here nor a dataset that can be read from the Hub.",
            why=str(error),
            fix="Check the name and the split. A gated or private dataset needs `hf auth login`.",
        ) from error
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        raise EnvironmentFault(
            f"{dataset} could not be fetched from the Hub.",
            why=str(error),
            fix="Check the network and try again, or give a local file.",
        ) from error
    return HubSource(f"{dataset}[{split}]", data)
