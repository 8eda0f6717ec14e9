"""Messages between a process and its confined process: a JSON object and bytes, each after its length."""

from __future__ import annotations

import json
import struct
from typing import IO, Any, NamedTuple

_LENGTHS = struct.Struct("<QQ")


class Message(NamedTuple):
    """A message: `fields` are written as JSON, `blob` as bytes, such as arrays."""

    fields: dict[str, Any]
    blob: bytes = b""


def write(stream: IO[bytes], message: Message) -> None:
    """Send a message.

    Raises:
        OSError: the other process has closed the stream.
    """
    # a row may have half a surrogate pair, which UTF-8 cannot encode
    text = json.dumps(message.fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
    stream.write(_LENGTHS.pack(len(text), len(message.blob)))
    stream.write(text)
    stream.write(message.blob)
    stream.flush()


def read(stream: IO[bytes]) -> Message | None:
    """Wait for a message; None if the stream ends, also in the middle of a message."""
    head = stream.read(_LENGTHS.size)
    if len(head) < _LENGTHS.size:
        return None
    text_length, blob_length = _LENGTHS.unpack(head)
    text = stream.read(text_length)
    blob = stream.read(blob_length)
    if len(text) < text_length or len(blob) < blob_length:
        return None
    return Message(json.loads(text.decode("utf-8", "surrogatepass")), blob)
