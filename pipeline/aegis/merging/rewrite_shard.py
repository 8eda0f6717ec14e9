"""One shard of a base made into one shard of the merged model, in one pass over the disk.

A piece of rows is read and changed in one of several threads, which then, when it is the piece's turn, hashes what was
read, hashes what leaves and writes it; flushing goes on beside them. Nothing is read twice.

A weight that goes through NF4 can leave only when all of it was read, and is held as codes until then. Its rows leave
beside those of later tensors that are being read: so the threads have both kinds of work all the time, and no weight
has to wait for the last rows of its own.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from aegis.merging.nf4_round_trip import Nf4Weight
from aegis.merging.ordered_pool import Scratch, run_in_order
from aegis.merging.plan import SLAB_BYTES, MergePlan
from aegis.model.shard_writer import ShardWriter
from aegis.model.shards import HEAD, TensorEntry, raw_bytes


@dataclass(frozen=True)
class RewrittenShard:
    """What was read and written: the source's sha256, the target's size and sha256."""

    source_sha256: bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Rows:
    """Rows of one tensor.

    Attributes:
        name: of the tensor that is written.
        weight: their round trip through NF4.
        kept: the whole tensor's memory, if it makes no round trip and still has to wait for a weight before it.
    """

    name: str
    entry: TensorEntry
    start: int
    stop: int
    weight: Nf4Weight | None = None
    kept: Tensor | None = None

    def memory(self, scratch: Scratch) -> Tensor:
        """Where they are read into."""
        if self.kept is not None:
            return self.kept
        return scratch.tensor("source", self.entry.shape_of(self.start, self.stop), self.entry.dtype)


@dataclass(frozen=True)
class _Piece:
    """What a thread does in one go.

    Attributes:
        read: rows to be read; those to be written if they do not have to wait.
        written: rows to be written.
        counts: whether what is read belongs to the source's hash: not when the embeddings come again as the head.
    """

    read: _Rows | None
    written: _Rows | None
    counts: bool = True


def rewrite_shard(plan: MergePlan, file: Path, target: Path, advance: Callable[[int], None]) -> RewrittenShard:
    """Write what the plan makes of one of the base's files.

    Args:
        advance: called with the bytes that were written, from this thread.

    Raises:
        IntegrityError: the file shrank, or a value is not finite or does not fit the dtype.
    """
    outputs = list(plan.outputs(file))
    with ShardWriter(target, [(name, plan.out_dtype(entry), entry.shape) for name, entry in outputs]) as writer:
        rewriter = _Rewriter(plan, writer, hashlib.sha256(_header(plan, file)))
        then = (rewriter.hash_source, rewriter.hold, rewriter.hash_target, rewriter.store)
        with closing(run_in_order(_pieces(plan, outputs), rewriter.work, *then)) as done:
            for piece in done:
                if rows := piece.written:
                    advance((rows.stop - rows.start) * _row_bytes(plan, rows.entry))
                    writer.flush()
    return RewrittenShard(rewriter.source_hash.digest(), writer.bytes, writer.sha256)


class _Rewriter:
    """The steps that a piece goes through: `work` on several threads at once, the others one at a time, in order."""

    def __init__(self, plan: MergePlan, writer: ShardWriter, source_hash: hashlib._Hash) -> None:
        self._plan, self._writer = plan, writer
        self.source_hash = source_hash

    def work(self, piece: _Piece, scratch: Scratch) -> None:
        if read := piece.read:
            read.entry.read(read.start, read.stop, into=read.memory(scratch))
            if read is piece.written:
                self._change(read, scratch)

    def hash_source(self, piece: _Piece, scratch: Scratch) -> None:
        if (read := piece.read) and piece.counts:
            self.source_hash.update(raw_bytes(read.memory(scratch)))

    def hold(self, piece: _Piece, scratch: Scratch) -> None:
        # one at a time: made of many short steps, two would wait for each other at the interpreter's lock
        if (read := piece.read) and read.weight:
            read.weight.quantize(read.start, read.memory(scratch), scratch)
            if read.stop == read.entry.rows:
                read.weight.seal()
        if piece.written and piece.written is not piece.read:
            self._change(piece.written, scratch)

    def hash_target(self, piece: _Piece, scratch: Scratch) -> None:
        if piece.written:
            self._writer.hash(self._result(piece.written, scratch))

    def store(self, piece: _Piece, scratch: Scratch) -> None:
        if piece.written:
            self._writer.store(self._result(piece.written, scratch))

    def _result(self, rows: _Rows, scratch: Scratch) -> Tensor:
        """The memory of what is written."""
        shape = rows.entry.shape_of(rows.start, rows.stop)
        return scratch.tensor("result", shape, self._plan.out_dtype(rows.entry))

    def _change(self, rows: _Rows, scratch: Scratch) -> None:
        source = (
            rows.weight.rows
            if rows.weight
            else lambda first, last: rows.memory(scratch)[first - rows.start : last - rows.start]
        )
        self._plan.change(rows.name, rows.start, rows.stop, source, self._result(rows, scratch), scratch)


def _pieces(plan: MergePlan, outputs: list[tuple[str, TensorEntry]]) -> Iterator[_Piece]:
    """All that is read and all that is written, each in the file's order.

    The rows held in between are never more than the largest weight's.
    """
    held: deque[_Rows] = deque()
    for name, entry in outputs:
        slabs = list(entry.slabs(SLAB_BYTES))
        counts = not (name == HEAD and plan.untied)
        if plan.round_trip is not None and name in plan.round_trip.weights:
            weight = plan.round_trip.begin(entry)
            parts = [_Rows(name, entry, start, stop, weight=weight) for start, stop in slabs]
        elif held and len(slabs) == 1:
            kept = torch.empty(entry.shape_of(*slabs[0]), dtype=entry.dtype)
            parts = [_Rows(name, entry, *slabs[0], kept=kept)]
        else:
            while held:
                yield _Piece(None, held.popleft())
            for rows in (_Rows(name, entry, start, stop) for start, stop in slabs):
                yield _Piece(rows, rows, counts)
            continue
        for rows in parts:
            yield _Piece(rows, held.popleft() if held else None, counts)
        held.extend(parts)
    while held:
        yield _Piece(None, held.popleft())


def _header(plan: MergePlan, file: Path) -> bytes:
    """Everything before the first tensor; the format has no gaps behind it."""
    entries = plan.base.shards.in_file(file)
    with file.open("rb") as handle:
        return handle.read(entries[0].offset_bytes if entries else -1)


def _row_bytes(plan: MergePlan, entry: TensorEntry) -> int:
    return plan.out_dtype(entry).itemsize * entry.bytes // entry.dtype.itemsize // max(1, entry.rows)
