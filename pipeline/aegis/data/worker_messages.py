"""Converts records and examples for the confined process that encodes: records to lines of JSON, tokens to bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aegis.data.example import Encoded, Example
from aegis.data.json_values import reason
from aegis.data.records import Chat, Plain, Record
from aegis.data.row_encoder import Batch
from aegis.llama_cpp.confined import Message
from aegis.messages import phrase


def lines_of(records: Sequence[Record]) -> tuple[bytes, list[tuple[str, str]]]:
    """Return records as lines, and position and reason of those that cannot be written, such as too deep nesting."""
    lines, unwritable = [], []
    for record in records:
        try:
            lines.append(json.dumps(_fields_of(record), ensure_ascii=False).encode("utf-8", "surrogatepass"))
        except (RecursionError, ValueError) as error:
            unwritable.append((record.where, reason(error)))
        except TypeError:
            unwritable.append((record.where, phrase("files.no_json_form")))
    return b"\n".join(lines), unwritable


def records_of(lines: bytes) -> list[Record]:
    """Return the records that `lines_of` wrote."""
    return [_record_of(json.loads(line.decode("utf-8", "surrogatepass"))) for line in lines.split(b"\n") if line]


def _fields_of(record: Record) -> dict[str, Any]:
    if isinstance(record, Plain):
        return {"text": record.text, "where": record.where}
    fields: dict[str, Any] = {"messages": record.messages, "where": record.where}
    if record.pair:
        fields["pair"] = True
    if record.context:
        fields["context"] = sorted(record.context)
    if record.tools is not None:
        fields["tools"] = record.tools
    if record.variables:
        fields["variables"] = dict(record.variables)
    return fields


def _record_of(fields: Mapping[str, Any]) -> Record:
    if "text" in fields:
        return Plain(**fields)
    return Chat(**{**fields, "context": frozenset(fields.get("context", ()))})


def message_of(batch: Batch, *, texts: bool) -> Message:
    """Return an encoded batch as a message; it has the rows' positions and texts only with `texts`."""
    examples = [row.example for row in batch.rows]
    fields = {
        "lengths": [len(example.ids) for example in examples],
        "documents": [example.is_document for example in examples],
        "texts": [(row.where, row.text) if texts else ("", "") for row in batch.rows],
        "rejects": batch.rejects,
        "lost_thoughts": batch.lost_thoughts,
        "unopened": batch.unopened,
    }
    parts = [*(example.ids for example in examples), *(example.trained for example in examples)]
    return Message(fields, b"".join(part.tobytes() for part in parts))


def message_of_ids(found: Sequence[Sequence[int]]) -> Message:
    """Return the ids of texts as a message."""
    joined = np.array([token for ids in found for token in ids], np.int32)
    return Message({"lengths": [len(ids) for ids in found]}, joined.tobytes())


def ids_of(message: Message) -> list[list[int]]:
    """Return the ids that `message_of_ids` wrote."""
    ids, lengths = np.frombuffer(message.blob, np.int32), message.fields["lengths"]
    ends = np.cumsum(lengths, dtype=np.int64).tolist()
    return [ids[end - length : end].tolist() for end, length in zip(ends, lengths, strict=True)]


def batch_of(message: Message) -> Batch:
    """Return the encoded batch that `message_of` wrote."""
    fields = message.fields
    lengths = fields["lengths"]
    ends = np.cumsum(lengths, dtype=np.int64)
    count = int(ends[-1]) if len(ends) else 0
    ids = np.frombuffer(message.blob, np.int32, count)
    trained = np.frombuffer(message.blob, np.bool_, count, offset=ids.nbytes)
    rows = [
        Encoded(where, text, Example(ids[end - length : end], trained[end - length : end], is_document))
        for end, length, is_document, (where, text) in zip(
            ends.tolist(), lengths, fields["documents"], fields["texts"], strict=True
        )
    ]
    rejects = [(where, reason) for where, reason in fields["rejects"]]
    return Batch(rows, rejects, fields["lost_thoughts"], fields["unopened"])
