"""Reads JSON values from a file one after the other, in bounded memory: items, members, rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from aegis.data.data_file import DataFile
from aegis.data.json_values import DECODER, fault, reason
from aegis.data.lines import decoded
from aegis.errors import DataError
from aegis.limits import ROW_BYTES
from aegis.messages import phrase

_MIN_AHEAD = ROW_BYTES + (1 << 16)
_LONGEST_WORD = 16
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonStream:
    """A text that is read while its values are consumed; at most a few values of the maximum size are in memory."""

    def __init__(self, data: DataFile) -> None:
        self._path = data.path
        self._pieces = decoded(data)
        self._text, self._at, self._ended = "", 0, False
        self._line, self._column = 1, 1  # the position of the text's first character

    def peek(self) -> str:
        """Return the next character that is not a space; "" at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._read_on()

    def take(self, *characters: str) -> str:
        """Consume and return the next character, which must be one of these.

        Raises:
            DataError: it is another one.
        """
        found = self.peek()
        if found not in characters or not found:
            raise self._broken(self._at, phrase("files.json_bracket", characters=" / ".join(map(repr, characters))))
        self._at += 1
        return found

    def value(self) -> Any:
        """Consume and return the next value.

        Raises:
            DataError: the value is invalid, or larger than a row may be.
        """
        self.peek()
        if not self._ended and len(self._text) - self._at <= _MIN_AHEAD:
            self._read_on()
        try:
            value, self._at = DECODER.raw_decode(self._text, self._at)
        except json.JSONDecodeError as error:
            near_end = error.pos > len(self._text) - _LONGEST_WORD or error.msg.startswith("Unterminated")
            if near_end and not self._ended:
                raise self._too_long() from None
            raise self._broken(error.pos, fault(error.msg)) from error
        except (ValueError, RecursionError) as error:
            line = self._line + self._text[: self._at].count("\n")
            raise DataError("files.broken_json", source_name=self._path, lineno=line, error=reason(error)) from error
        return value

    def items(self) -> Iterator[Any]:
        """Yield the values of the next array."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",", "]") == "]":
                return

    def members(self) -> Iterator[str]:
        """Yield the keys of the next object; the caller must consume each key's value before the next key."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            if self.peek() != '"':
                raise self._broken(self._at, phrase("files.json_name"))
            key = self.value()
            self.take(":")
            yield key
            if self.take(",", "}") == "}":
                return

    def end(self) -> None:
        """Check that the text ends here.

        Raises:
            DataError: it does not.
        """
        if self.peek():
            raise self._broken(self._at, phrase("files.json_more"))

    def _read_on(self) -> None:
        """Drop the consumed text, and read until at least one row of the maximum size is in memory."""
        consumed = self._text[: self._at]
        self._line += consumed.count("\n")
        self._column = len(consumed) - consumed.rfind("\n") if "\n" in consumed else self._column + len(consumed)
        pieces, size = [self._text[self._at :]], len(self._text) - self._at
        while size <= ROW_BYTES + ROW_BYTES // 4 and not self._ended:
            piece = next(self._pieces, "")
            self._ended = not piece
            pieces.append(piece)
            size += len(piece)
        self._text, self._at = "".join(pieces), 0

    def _broken(self, at: int, message: str) -> DataError:
        before = self._text[:at]
        line = self._line + before.count("\n")
        column = at - before.rfind("\n") if "\n" in before else self._column + at
        broken = phrase("files.broken", column=column, error=message)
        return DataError("files.broken_document", source_name=self._path, lineno=line, broken=broken)

    def _too_long(self) -> DataError:
        line = self._line + self._text[: self._at].count("\n")
        return DataError("files.long_value", source_name=self._path, line=line, most=ROW_BYTES / 1e6)
