"""Makes one shard of the merged model from one shard of the base, in one pass over the disk.

One of several threads reads and changes a piece of rows. When it is the piece's turn, the same thread hashes what it
read, hashes what it writes, and writes it; the caller flushes meanwhile. Nothing is read twice.

A weight that goes through NF4 can be written only after all of it was read; until then its codes are kept. Its rows are
written while later tensors are read, so the threads always have both kinds of work, and no thread waits for the last
rows of a weight.
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

from aegis.merging.merged_weights import SLAB_BYTES, MergePlan
from aegis.merging.nf4_round_trip import Nf4Weight
from aegis.merging.ordered_pool import Scratch, run_in_order
from aegis.model.shard_writer import ShardWriter
from aegis.model.shards import HEAD, TensorEntry, raw_bytes


@dataclass(frozen=True)
class RewrittenShard:
    """The result of `rewrite_shard`: the source's sha256, the target's size and sha256."""

    source_sha256: bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Rows:
    """Rows of one tensor.

    Attributes:
        name: the name of the tensor that is written.
        weight: the round trip through NF4, if the tensor makes one.
        kept: memory for all of the tensor, if it makes no round trip but must wait for an earlier weight.
    """

    name: str
    entry: TensorEntry
    start: int
    stop: int
    weight: Nf4Weight | None = None
    kept: Tensor | None = None

    def memory(self, scratch: Scratch) -> Tensor:
        """Return the memory that the rows are read into."""
        if self.kept is not None:
            return self.kept
        return scratch.tensor("source", self.entry.shape_of(self.start, self.stop), self.entry.dtype)


@dataclass(frozen=True)
class _Piece:
    """One item of a thread's work.

    Attributes:
        read: the rows to read; the same object as `written` if they need not wait.
        written: the rows to write.
        counts: whether the read bytes belong to the source's hash; False when the embeddings are read again as the
            head.
    """

    read: _Rows | None
    written: _Rows | None
    counts: bool = True


def rewrite_shard(
    plan: MergePlan, file: Path, target: Path, advance: Callable[[int], None], source_sha256: bytes | None = None
) -> RewrittenShard:
    """Write the merged shard `target` from the base's `file`.

    Args:
        advance: called in this thread with the number of bytes that were written.
        source_sha256: the base file's sha256 if it is known already; None to compute it on the way.

    Raises:
        IntegrityError: the file became shorter, or a value is not finite or does not fit the dtype.
    """
    outputs = list(plan.outputs(file))
    with ShardWriter(target, [(name, plan.out_dtype(entry), entry.shape) for name, entry in outputs]) as writer:
        rewriter = _Rewriter(plan, writer, hashlib.sha256(_header(plan, file)))
        then = [rewriter.hold, rewriter.hash_target, rewriter.store]
        if source_sha256 is None:
            then.insert(0, rewriter.hash_source)
        with closing(run_in_order(_pieces(plan, outputs), rewriter.work, *then)) as done:
            for piece in done:
                if rows := piece.written:
                    advance((rows.stop - rows.start) * _row_bytes(plan, rows.entry))
                    writer.flush()
    return RewrittenShard(source_sha256 or rewriter.source_hash.digest(), writer.bytes, writer.sha256)


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
        # one at a time: it has many short steps, and two threads would wait for each other at the interpreter's lock
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
        """Return the memory of the rows to write."""
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
    """Yield all reads and all writes, each in the file's order.

    The rows that wait between the two are never more than those of the largest weight.
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
    """Return the bytes before the first tensor; the format has no gaps after them."""
    entries = plan.base.shards.in_file(file)
    with file.open("rb") as handle:
        return handle.read(entries[0].offset_bytes if entries else -1)


def _row_bytes(plan: MergePlan, entry: TensorEntry) -> int:
    return plan.out_dtype(entry).itemsize * entry.bytes // entry.dtype.itemsize // max(1, entry.rows)
