"""The LM head's rows a chunk at a time, so that their logits never exist all at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Float32 logits held at a time."""


@cache
def compile_once(errors: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """`errors` as torch.compile makes one kernel of it, the same one for all callers."""
    return torch.compile(errors, dynamic=False)


def head_chunks(hidden: Tensor, head: Tensor, *, sides: int = 1) -> Iterator[slice]:
    """Ranges of rows whose logits fit in CHUNK_BYTES.

    Args:
        hidden: (n, hidden_size).
        head: (vocab_size, hidden_size).
        sides: models whose logits exist at once.
    """
    chunks = max(1, math.ceil(4 * sides * hidden.shape[0] * head.shape[0] / CHUNK_BYTES))
    height = max(1, math.ceil(hidden.shape[0] / chunks))
    for start in range(0, hidden.shape[0], height):
        yield slice(start, start + height)


def scaled_gradient(ctx: Any, outer: Tensor) -> Tensor | None:
    """The gradient of the hidden states that the forward pass saved, times that of the sum."""
    (gradient,) = ctx.saved_tensors
    return None if gradient is None else gradient * outer.to(gradient.dtype)
