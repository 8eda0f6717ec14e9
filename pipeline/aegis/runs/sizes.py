"""How many bytes a stage leaves on disk, for a refusal before the work and for `aegis plan`."""

from __future__ import annotations

from collections.abc import Iterable

_BITS_AT_MOST = {"F32": 32.0, "F16": 16.0, "BF16": 16.0}
"""Bits a weight; every other type stays under 8.6, Q8_0's, with room for the f32 norms."""


def checkpoints_bytes(trained_bytes: int, keep: int) -> int:
    """Of the checkpoints that stand at once, and the finished adapter.

    A checkpoint holds the trained parameters and their two moments; one more stands while the oldest is not yet gone.
    """
    return (keep + 1) * 3 * trained_bytes + trained_bytes


def gguf_bytes(weights: int, quants: Iterable[str]) -> int:
    """Of a file of each type, at most."""
    return int(weights * sum(_BITS_AT_MOST.get(quant, 8.6) for quant in quants) / 8)
