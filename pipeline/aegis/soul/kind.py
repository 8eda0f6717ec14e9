"""The kinds of rotation: blocks of one size along the diagonal, or one dense rotation."""

from __future__ import annotations

from typing import Literal, cast, get_args

from aegis.errors import UsageError

Kind = Literal["so8", "so16", "so32", "so64", "so96", "so128", "so192", "so256", "dense"]
"""`soN` has hidden_size/N blocks of N × N, each in SO(N); `dense` is one rotation in SO(hidden_size)."""


def block_shape(kind: Kind, hidden_size: int) -> tuple[int, int]:
    """Return (blocks, n) for a hidden size.

    Raises:
        UsageError: the kind has blocks, and `hidden_size` is not a multiple of their size.
    """
    if kind == "dense":
        return 1, hidden_size
    n = int(kind.removeprefix("so"))
    if hidden_size % n:
        raise UsageError("soul.not_divisible", kind=kind, block=n, hidden_size=hidden_size)
    return hidden_size // n, n


def kind_of(blocks: int, n: int) -> Kind | None:
    """Return the kind of a rotation (blocks, n, n); None if there is no such kind."""
    name = "dense" if blocks == 1 else f"so{n}"
    return cast(Kind, name) if name in get_args(Kind) else None
