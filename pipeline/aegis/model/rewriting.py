"""One shard of a base made into one shard of the merged model, in one pass over the disk.

A piece of rows is read and changed in one of several threads, which then, when it is the piece's turn, hashes what was
read, hashes what leaves and writes it; flushing goes on beside them. Nothing is read twice, and a weight that goes
through NF4 is held only as codes in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from aegis.model.merging import SLAB_BYTES, MergePlan
from aegis.model.nf4 import Nf4Weight
from aegis.model.shards import HEAD, ShardWriter, TensorEntry, raw_bytes
from aegis.model.streaming import Slab, stream


@dataclass(frozen=True)
class Rewritten:
    """What was read and written: the source's sha256, the target's size and sha256."""

    source_sha256: bytes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Piece:
    """Rows of one tensor on their way.

    Attributes:
        name: of the tensor they are written to; "" if they are only read, into `weight`.
        read: whether they come from the source; else from `weight`.
        counts: whether what is read belongs to the source's hash: not when the embeddings come again as the head.
        weight: their round trip through NF4.
    """

    entry: TensorEntry
    start: int
    stop: int
    name: str
    read: bool = True
    counts: bool = True
    weight: Nf4Weight | None = None

    def source(self, slab: Slab) -> Tensor:
        """The slab's memory for what is read."""
        return slab.tensor("source", self.entry.shape_of(self.start, self.stop), self.entry.dtype)


def rewrite_shard(plan: MergePlan, file: Path, target: Path, advance: Callable[[int], None]) -> Rewritten:
    """Write what the plan makes of one of the base's files.

    Args:
        advance: told the bytes that were written, from this thread.

    Raises:
        IntegrityError: the file shrank, or a value is not finite or does not fit the dtype.
    """
    source_hash = hashlib.sha256(_header(plan, file))
    outputs = list(plan.outputs(file))

    def leaving(piece: _Piece, slab: Slab) -> Tensor:
        return slab.tensor("leaving", piece.entry.shape_of(piece.start, piece.stop), plan.out_dtype(piece.entry))

    def work(piece: _Piece, slab: Slab) -> None:
        source = piece.source(slab)
        if piece.read:
            piece.entry.read(piece.start, piece.stop, into=source)
        if not piece.name:
            assert piece.weight is not None
            piece.weight.quantize(piece.start, source)
            return
        rows = (
            piece.weight.rows if piece.weight else lambda first, last: source[first - piece.start : last - piece.start]
        )
        plan.change(piece.name, piece.start, piece.stop, rows, leaving(piece, slab), slab)

    def hash_source(piece: _Piece, slab: Slab) -> None:
        if piece.read and piece.counts:
            source_hash.update(raw_bytes(piece.source(slab)))

    with ShardWriter(target, [(name, plan.out_dtype(entry), entry.shape) for name, entry in outputs]) as writer:

        def hash_target(piece: _Piece, slab: Slab) -> None:
            if piece.name:
                writer.hash(leaving(piece, slab))

        def store(piece: _Piece, slab: Slab) -> None:
            if piece.name:
                writer.store(leaving(piece, slab))

        with closing(stream(_pieces(plan, outputs), work, hash_source, hash_target, store)) as done:
            for piece in done:
                if piece.name:
                    advance((piece.stop - piece.start) * _row_bytes(plan, piece.entry))
                    writer.flush()
    return Rewritten(source_hash.digest(), writer.bytes, writer.sha256)


def _pieces(plan: MergePlan, outputs: list[tuple[str, TensorEntry]]) -> Iterator[_Piece]:
    for name, entry in outputs:
        slabs = list(entry.slabs(SLAB_BYTES))
        if plan.round_trip is not None and name in plan.round_trip.weights:
            weight = plan.round_trip.begin(entry)
            yield from (_Piece(entry, start, stop, "", weight=weight) for start, stop in slabs)
            weight.seal()
            yield from (_Piece(entry, start, stop, name, read=False, weight=weight) for start, stop in slabs)
        else:
            again = name == HEAD and plan.untied
            yield from (_Piece(entry, start, stop, name, counts=not again) for start, stop in slabs)


def _header(plan: MergePlan, file: Path) -> bytes:
    """Everything before the first tensor; the format has no gaps behind it."""
    entries = plan.base.shards.in_file(file)
    with file.open("rb") as handle:
        return handle.read(entries[0].offset_bytes if entries else -1)


def _row_bytes(plan: MergePlan, entry: TensorEntry) -> int:
    return plan.out_dtype(entry).itemsize * entry.bytes // entry.dtype.itemsize // max(1, entry.rows)
