"""Reads the rows of a Parquet file in a confined process: a few bytes of it may unpack to gigabytes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aegis.data.data_file import DataFile
from aegis.data.records import repeated
from aegis.errors import DataError
from aegis.limits import ROW_BYTES
from aegis.llama_cpp.confined import Caller, Message

_BATCH_ROWS = 256


def answers(request: Message, caller: Caller) -> Iterator[Message]:
    """Yield rows as JSON values, in order, with None for a row that is too long.

    A value without a JSON form, such as a date or bytes, becomes an object with the name of its type; it is not text.

    Raises:
        DataError: the file is not a Parquet file, is damaged, or has changed since it was hashed; or two of its columns
            have one name.
    """
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        data = DataFile(Path(request.fields["path"]), request.fields["blocks"])
        with (
            io.BufferedReader(data.open()) as opened,
            pyarrow.parquet.ParquetFile(opened, pre_buffer=False) as file,
        ):
            twice = repeated(file.schema_arrow.names)
            if twice is not None:
                raise DataError("files.repeated_column", source_name=request.fields["name"], name=twice)
            rows: list[Any] = []
            size, of = 0, file.metadata.num_rows
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                for place in range(batch.num_rows):
                    (row,) = batch.slice(place, 1).to_pylist()
                    length = _length(row)
                    rows.append(_as_json(row) if length <= ROW_BYTES else None)
                    size += length
                    if size > ROW_BYTES:
                        yield Message({"rows": rows, "of": of})
                        rows, size = [], 0
                if rows:
                    yield Message({"rows": rows, "of": of})
                    rows, size = [], 0
    except MemoryError:  # pyarrow's is an ArrowException as well
        raise
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError("files.broken_parquet", source_name=request.fields["name"], error=str(error)) from error


def _length(value: Any) -> int:
    """Return about the number of characters of a value in JSON."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(len(key) + _length(inner) for key, inner in value.items())
    return sum(map(_length, value)) if isinstance(value, list | tuple) else 8


def _as_json(row: Any) -> Any:
    return json.loads(json.dumps(row, default=lambda value: {type(value).__name__: None}))
