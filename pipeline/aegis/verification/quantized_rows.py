"""Compares the weights of a quantized file with the f16 file's, and quantizes some of them again.

Quantizing a model again takes as long as the first time; dequantizing its weights is much faster. So every row is
dequantized, and its distance from the f16 row is measured. The quantizer itself quantizes again one row in 16, every
row that is further away than those, and every row of a small tensor. These rows are compared byte by byte, so no bound
has to be guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from aegis import progress
from aegis.errors import IntegrityError
from aegis.llama_cpp import GgufFile, TensorInfo, dequantize_rows, quantize_rows
from aegis.merging.ordered_pool import Scratch, run_in_order
from aegis.messages import phrase
from aegis.verification.gguf_equality import Slab, refuse_other_rows

Importance = Mapping[str, NDArray[np.float32]]
EXACT_WEIGHTS = 1 << 22
"""Maximum weights of a tensor that is quantized again completely."""
EVERY = 16
"""In a larger tensor, one row in this many is quantized again."""
_SUSPICIOUS = 1.25
"""A row is quantized again too if its distance is this many times the largest distance among those rows."""
_MAX_SUSPECTS = 64
"""Suspicious rows that are quantized again per slab; if more rows are wrong, one of these is among them."""
_AS_NEAR = 1.01
_TIES = 1 / 50
"""Another processor may round a scale's near-tie the other way: such a row is as near to the f16 row as the quantizer's
own, and rare."""
_FURTHER = 2.0
"""How many times further a row may be if it was quantized with an importance matrix that is not found."""
_SLAB_BYTES = 4 << 20


@dataclass
class _Rows:
    """Rows of one tensor to compare.

    Attributes:
        asked: number of rows that were quantized again.
        ties: how many of them have other bytes, but are as near to the f16 rows as the quantizer's.
    """

    slab: Slab
    asked: int = 0
    ties: int = 0


@dataclass
class Comparison:
    """The counts of a comparison over all tensors; see `_Rows`."""

    rows: int = 0
    asked: int = 0
    ties: dict[str, int] = field(default_factory=dict)


def compare_rows(found: GgufFile, reference: GgufFile, importance: Importance | None, *, exact: bool) -> Comparison:
    """Compare every weight of a quantized file with the f16 file's.

    Args:
        found: the quantized file; names, shapes and types of its tensors were checked.
        importance: the importance matrix that it was quantized with; None if there was none.
        exact: False if it was quantized with an importance matrix that is not found.

    Raises:
        IntegrityError: a row differs by more than rounding; the message names the tensor and the row.
    """
    slabs = [slab for info in reference.tensors.values() for slab in Slab.cut(info, _SLAB_BYTES)]
    asked: dict[str, int] = {}
    result = Comparison()

    def work(item: _Rows, _scratch: Scratch) -> None:
        _compare(found, reference, item, importance or {}, exact=exact)

    total = sum(slab.bytes for slab in slabs)
    with (
        progress.task(phrase("quantized.comparing", name=found.path.name), total, "B") as bar,
        closing(run_in_order(map(_Rows, slabs), work)) as done,
    ):
        for item in done:
            name = item.slab.info.name
            result.rows += item.slab.stop - item.slab.start
            result.asked += item.asked
            asked[name] = asked.get(name, 0) + item.asked
            if item.ties:
                result.ties[name] = result.ties.get(name, 0) + item.ties
            bar.advance(item.slab.bytes)
    for name, ties in result.ties.items():
        if ties > max(1, asked[name] * _TIES):
            raise IntegrityError("quantized.other_rows", path=found.path, name=name, count=ties, asked=asked[name])
    return result


def _compare(found: GgufFile, reference: GgufFile, item: _Rows, importance: Importance, *, exact: bool) -> None:
    slab = item.slab
    name, kind = slab.info.name, found.tensors[slab.info.name].type
    if kind == slab.info.type:
        refuse_other_rows(found, reference, slab)
        return
    values = _float_rows(reference, slab)
    raw = found.raw_rows(name, slab.start, slab.stop)
    distance = _distances(dequantize_rows(raw, kind, slab.info.columns), values)
    weights = importance.get(name)

    def ask(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Quantize some rows again and compare them; return the distances of the quantizer's rows from the f16's."""
        own = _quantized(values[rows], kind, weights, slab.info, slab.start + rows)
        off = _distances(dequantize_rows(own, kind, slab.info.columns), values[rows])
        if not exact:
            if (wrong := distance[rows] > _FURTHER * off).any():
                raise _too_far(found, item, rows[wrong], distance, off[wrong])
            return off
        item.asked += len(rows)
        other = (own != raw[rows]).any(-1)
        if (wrong := other & ~(distance[rows] <= _AS_NEAR * off)).any():
            raise _too_far(found, item, rows[wrong], distance, off[wrong])
        item.ties += int(other.sum())
        return off

    every = np.arange(slab.stop - slab.start)
    if slab.info.rows * slab.info.columns <= EXACT_WEIGHTS:
        ask(every)
        return
    # a hash of the row's number: always the same rows, and no regular pattern
    sample = every[(slab.start + every) * 2654435761 % 2**32 < 2**32 // EVERY]
    sample = sample if len(sample) else every[:1]
    usual = ask(sample).max()
    if len(suspects := np.setdiff1d(every[distance > _SUSPICIOUS * usual], sample)):
        ask(suspects[np.argsort(-distance[suspects])[:_MAX_SUSPECTS]])


def _quantized(
    values: NDArray[np.float32],
    kind: str,
    weights: NDArray[np.float32] | None,
    info: TensorInfo,
    rows: NDArray[np.intp],
) -> NDArray[np.uint8]:
    if weights is None or len(weights) == info.columns:
        return quantize_rows(values, kind, weights)
    # one importance vector per expert
    of_expert = weights.reshape(-1, info.columns)[rows // info.shape[-2]]
    return np.concatenate([quantize_rows(values[at : at + 1], kind, of_expert[at]) for at in range(len(rows))])


def _float_rows(file: GgufFile, slab: Slab) -> NDArray[np.float32]:
    return dequantize_rows(file.raw_rows(slab.info.name, slab.start, slab.stop), slab.info.type, slab.info.columns)


def _distances(values: NDArray[np.float32], reference: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return |values − reference| / |reference| of each row."""
    with np.errstate(all="ignore"):  # a damaged scale may have any value
        off = np.sqrt(np.einsum("ij,ij->i", values - reference, values - reference, dtype=np.float64))
        size = np.sqrt(np.einsum("ij,ij->i", reference, reference, dtype=np.float64))
        relative = np.where(off == 0, 0.0, off / size)
    return np.where(np.isnan(relative), np.inf, relative)


def _too_far(
    found: GgufFile, item: _Rows, rows: NDArray[np.intp], distance: NDArray[np.float64], own: NDArray[np.float64]
) -> IntegrityError:
    row = int(rows[0])
    return IntegrityError(
        "quantized.row_off",
        path=found.path,
        name=item.slab.info.name,
        row=item.slab.start + row,
        distance=float(distance[row]),
        own=float(own[0]),
        count=len(rows),
    )
