"""Pinned memory of the host, between which and a GPU copies need not be waited for; a machine may have too little."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from aegis.errors import EnvironmentFault

_NO_MEMORY = ("out of memory", "enough memory", "allocate memory")
"""What CUDA and torch's own allocator say of memory; an earlier kernel's error may come up in the same place."""


@contextmanager
def pinning() -> Iterator[None]:
    """Pin memory in the block.

    Raises:
        EnvironmentFault: there is not enough of it.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise EnvironmentFault("train.not_pinned", error=str(error).partition("\n")[0]) from error


def can_pin(sizes: Iterable[int]) -> bool:
    """Whether pieces of so many bytes can be pinned, all at once.

    Torch's allocator keeps them, for whoever asks for as large ones later.
    """
    try:
        with pinning():
            held = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
    except EnvironmentFault:
        return False
    del held
    return True
