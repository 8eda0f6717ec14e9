"""Divides the rows at the LM head into chunks, so that the logits of all rows never exist at the same time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from aegis.training.kernels.compiler_options import REPEATABLE

CHUNK_BYTES = 64 << 20
"""Bytes of float32 logits per chunk."""


@cache
def compile_once(errors: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Compile `errors` into one kernel; all callers share the compiled function."""
    return torch.compile(errors, dynamic=False, options=REPEATABLE)


def head_chunks(hidden: Tensor, head: Tensor, *, sides: int = 1) -> Iterator[slice]:
    """Yield ranges of rows whose logits fit in CHUNK_BYTES, equal ranges if at most twice as many divide the rows.

    The compiler compiles each height of a range by itself, which takes seconds.

    Args:
        hidden: (n, hidden_size).
        head: (vocab_size, hidden_size).
        sides: number of models whose logits exist at the same time.
    """
    rows = hidden.shape[0]
    fewest = max(1, math.ceil(4 * sides * rows * head.shape[0] / CHUNK_BYTES))
    chunks = next((count for count in range(fewest, 2 * fewest) if rows % count == 0), fewest)
    height = max(1, math.ceil(rows / chunks))
    for start in range(0, rows, height):
        yield slice(start, start + height)


def scaled_gradient(ctx: Any, outer: Tensor) -> Tensor | None:
    """Return the hidden states' gradient from the forward pass, times the gradient of the sum."""
    (gradient,) = ctx.saved_tensors
    return None if gradient is None else gradient * outer.to(gradient.dtype)
