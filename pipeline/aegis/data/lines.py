"""Reads a text file line by line in bounded memory, and recognises other encodings than UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any, NamedTuple

from aegis.data.data_file import DataFile
from aegis.data.rejects import Rejects
from aegis.data.unpacking import PACKED, open_stream
from aegis.errors import DataError
from aegis.limits import ROW_BYTES
from aegis.messages import phrase

_SAMPLE_BYTES = 1 << 16
_PIECE_BYTES = 1 << 20
_JAPANESE = re.compile(r"[ぁ-ゖァ-ヶ]")
_HALF_WIDTH = re.compile(r"[\uff61-\uff9f]")  # EUC-JP that is read as cp932 has such characters
_ZEROS = {"utf-16-le": "x0x0", "utf-16-be": "0x0x", "utf-32-le": "x000x000", "utf-32-be": "000x000x"}
"""Zero bytes at the beginning of a text: JSON begins with two ASCII characters, as does a CSV header."""
_LOST = "\0\0"
"""What a file has where a crash lost a page of it; a single zero byte may be a character of its text."""


class Line(NamedTuple):
    """One line; `text` is None if it went to the rejects, and `end` is the byte offset after it."""

    where: str
    text: str | None
    end: int


def read_lines(data: DataFile, rejects: Rejects) -> Iterator[Line]:
    r"""Yield the lines of a UTF-8 file with their ends (\n or \r\n), without a byte order mark.

    In a file whose lines end in \r alone, each \r is read as \n.

    Raises:
        DataError: the file is in another encoding, and the message has the command to convert it; or its beginning is
            lost.
    """
    path = data.path
    with open_stream(data) as (file, place):
        _skip_mark(path, file)
        file = _with_line_feeds(file)
        known_utf8 = False
        number = 0
        while raw := file.readline(ROW_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            text = None
            if len(raw) > ROW_BYTES:
                while raw and not raw.endswith(b"\n"):
                    raw = file.readline(_SAMPLE_BYTES)
                rejects.add(where, phrase("lines.too_long", bytes=ROW_BYTES))
            elif _LOST.encode() in raw:
                rejects.add(where, phrase("lines.nul_row"))
            else:
                try:
                    text = raw.decode("utf-8")
                    known_utf8 = known_utf8 or not text.isascii()
                except UnicodeDecodeError as error:
                    if not known_utf8:
                        _refuse_other_encoding(path, where, raw, file)
                    rejects.add(where, phrase("lines.row_not_utf8", byte=error.start + 1))
            yield Line(where, text, place())


def decoded(data: DataFile) -> Iterator[str]:
    """The text of a UTF-8 file, piece by piece.

    Raises:
        DataError: it is in another encoding, or damaged.
    """
    path = data.path
    with open_stream(data) as (file, _):
        _skip_mark(path, file)
        decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
        while True:
            raw = file.read(_PIECE_BYTES)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                number += error.object.count(b"\n", 0, error.start)
                _refuse_other_encoding(path, f"{path}:{number}", error.object[error.start :], file)
                raise DataError("lines.not_utf8", where=f"{path}:{number}") from error
            before, lost, _ = text.partition(_LOST)
            number += before.count("\n")
            if lost:
                raise DataError("lines.nul", where=f"{path}:{number}")
            if text:
                yield text
            if not raw:
                return


def _skip_mark(path: Path, file: BufferedReader) -> None:
    """Skip a UTF-8 byte order mark; refuse UTF-16 and UTF-32, with or without a mark, and a file of zero bytes."""
    head = file.peek(4096)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise _other_encoding(path, "utf-32")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise _other_encoding(path, "utf-16")
    shape = "".join("x" if byte else "0" for byte in head[:8])
    for name, pattern in _ZEROS.items():
        if shape.startswith(pattern):
            raise _other_encoding(path, name)
    if shape.startswith("0"):
        raise DataError("lines.nul", where=path)
    file.read(len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0)


def _with_line_feeds(file: BufferedReader) -> BufferedReader:
    """Return the file with line feeds if its first lines end in a carriage return alone, as Excel for Mac writes them.

    Without it, the whole file would be one line.
    """
    head = file.peek(_SAMPLE_BYTES)
    return BufferedReader(_LineFeeds(file), _SAMPLE_BYTES) if b"\r" in head[:-1] and b"\n" not in head else file


class _LineFeeds(RawIOBase):
    """A file in which every carriage return is a line feed."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._file.read1(len(view)).replace(b"\r", b"\n")
        view[: len(piece)] = piece
        return len(piece)


def _refuse_other_encoding(path: Path, where: str, raw: bytes, file: BufferedReader) -> None:
    """Raise if the text from here on is Japanese in an older encoding; keep the file's position."""
    sample = raw[:_SAMPLE_BYTES]
    if len(raw) <= _SAMPLE_BYTES:
        following, newline, _ = file.peek(_SAMPLE_BYTES)[:_SAMPLE_BYTES].rpartition(b"\n")
        sample += following + newline
    for name in ("cp932", "euc_jp"):
        text = codecs.getincrementaldecoder(name)("replace").decode(sample)
        if "\ufffd" not in text and _JAPANESE.search(text) and not _HALF_WIDTH.search(text):
            raise _other_encoding(path, name, where)


def _other_encoding(path: Path, encoding: str, where: str = "") -> DataError:
    if path.suffix.lower() in PACKED:
        # the command below cannot read a packed file
        return DataError("lines.packed_encoding", path=path, encoding=encoding)
    label = {"cp932": "cp932 (Shift_JIS)", "euc_jp": "EUC-JP"}.get(encoding, encoding.upper())
    target = path.with_name(f"{path.stem}.utf8{path.suffix}")
    program = (
        "import sys; i, o = sys.argv[1:]; "
        f"open(o, 'w', encoding='utf-8', newline='').write(open(i, encoding='{encoding}', newline='').read())"
    )
    return DataError(
        "lines.other_encoding",
        path_name=path.name,
        label=label,
        first=phrase("lines.first", where=where) if where else "",
        program=program,
        path=path,
        target=target,
    )
