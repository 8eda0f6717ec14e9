"""Reads rows from CSV and TSV with a header line, in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from aegis.data.data_file import DataFile
from aegis.data.lines import read_lines
from aegis.data.records import Row, repeated
from aegis.data.rejects import Rejects
from aegis.errors import DataError
from aegis.limits import ROW_BYTES, ROW_FIELDS
from aegis.messages import phrase

_SEPARATORS = {";": "';'", "\t": "TAB", "|": "'|'", ",": "','"}
_FAULTS = {
    "unexpected end of data": "files.csv_open_quote",
    "field larger than": "files.csv_open_quote",
    "new-line character": "files.csv_line_end",
}
"""How messages of Python's parser begin, and ours; the other one is of a text after a closing quote."""


def csv_rows(data: DataFile, rejects: Rejects, delimiter: str) -> Iterator[tuple[Row, int]]:
    """Yield each row, whose place is the line on which it ends, and the number of bytes read so far.

    White space around the names in the header does not count. A column without a name may have values; two may not.

    Raises:
        DataError: the file is not CSV, has a name twice in its header, or is separated by another character.
    """
    table = _Table(data, rejects, delimiter)
    header = table.header()
    for fields in table:
        where = f"{data.path}:{table.number}"
        if len(fields) != len(header):
            key = "files.too_many_fields" if len(fields) > len(header) else "files.too_few_fields"
            rejects.add(where, phrase(key, found=len(fields), columns=len(header)))
            continue
        values = dict(zip(header, fields, strict=True))
        if len(values) < len(header):  # columns without a name
            unnamed = [text for name, text in zip(header, fields, strict=True) if not name and text]
            if len(unnamed) > 1:
                rejects.add(where, phrase("files.unnamed_columns"))
                continue
            values[""] = "".join(unnamed)
        yield Row(where, values), table.end


class _Table:
    """The rows of a file; `number` is the line that was read last, and `end` the byte offset after it."""

    def __init__(self, data: DataFile, rejects: Rejects, delimiter: str) -> None:
        self._path, self._delimiter = data.path, delimiter
        self._lines = read_lines(data, rejects)
        self._began = self._size = 0
        self._is_damaged = False
        self.number = self.end = 0
        csv.field_size_limit(ROW_BYTES)
        self._reader = csv.reader(self._texts(), delimiter=delimiter, strict=True)

    def header(self) -> list[str]:
        """Return the names of the columns; none of an empty file."""
        found = next(self, [])
        names = [name.strip() for name in found]
        names = names if len(set(names)) == len(set(found)) else found
        if len(names) > ROW_FIELDS:
            raise self._broken(phrase("files.many_columns", most=ROW_FIELDS))
        twice = repeated(filter(None, names))
        if twice is not None:
            raise DataError("files.repeated_column", source_name=self._path, name=twice)
        other = next((mark for mark in _SEPARATORS if mark != self._delimiter and mark in "".join(names[:1])), None)
        if len(names) == 1 and other:
            wanted, given = _SEPARATORS[self._delimiter], _SEPARATORS[other]
            raise DataError(
                "files.other_separator", source_name=self._path, header=names[0], wanted=wanted, given=given
            )
        return names

    def __iter__(self) -> Iterator[list[str]]:
        return self

    def __next__(self) -> list[str]:
        while True:
            self._began = self._size = 0
            self._is_damaged = False
            try:
                fields = next(self._reader)
            except csv.Error as error:
                known = (key for start, key in _FAULTS.items() if str(error).startswith(start))
                raise self._broken(phrase(next(known, "files.csv_after_quote"))) from error
            if fields and not self._is_damaged:
                return fields

    def _texts(self) -> Iterator[str]:
        for number, line in enumerate(self._lines, 1):
            self.number, self.end = number, line.end
            if line.text is None:
                self._is_damaged = self._began > 0  # a row with a missing line is not used
                continue
            self._began = self._began or number
            self._size += len(line.text)
            if self._size > ROW_BYTES:  # a row goes on over the lines while a quote is open
                raise self._broken(phrase("files.long_row", characters=ROW_BYTES))
            yield line.text

    def _broken(self, error: str) -> DataError:
        return DataError("files.broken_csv", source_name=self._path, line_num=self._began or self.number, error=error)
