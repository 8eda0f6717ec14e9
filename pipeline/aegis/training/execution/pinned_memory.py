"""Pinned host memory, which a GPU copies from and to in the background; a machine may have too little of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from aegis.errors import EnvironmentFault, first_line

_NO_MEMORY = ("out of memory", "enough memory", "allocate memory")
"""Words by which CUDA and torch report too little memory; an earlier kernel's error may be raised here as well."""


@contextmanager
def pinning() -> Iterator[None]:
    """Explain a failure to pin memory in the block.

    Raises:
        EnvironmentFault: there is not enough memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
        raise EnvironmentFault("train.not_pinned", error=first_line(error)) from error


def can_pin(sizes: Iterable[int]) -> bool:
    """Whether pieces of these sizes, in bytes, can be pinned all at once.

    Torch's allocator keeps them and hands them out to later requests of the same sizes.
    """
    try:
        with pinning():
            pieces = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
    except EnvironmentFault:
        return False
    del pieces
    return True
