"""Counts what a step allocates without allocating it: the real graph runs on tensors that have a shape and no data.

Where a GPU allocates differently from the meta device, a function that allocates as the GPU does replaces the original:
products with 4-bit weights dequantize the matrix first, attention is one kernel that keeps no scores, dropout keeps a
mask of bytes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aegis.training.kernels import chunked_loss

_BLOCK_BYTES = 512
"""CUDA's caching allocator hands out multiples of this (c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize)."""


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of the storages that are created inside the block and still exist.

    Args:
        known: tensors that exist already; views of them count nothing.

    Attributes:
        peak: the largest number of bytes at one time.
        part_at_peak: bytes of the peak that were created inside `part` blocks.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.part_at_peak = self._part_live = 0
        self._in_part = False
        self._counted = {tensor.untyped_storage()._cdata for tensor in known}

    @contextmanager
    def part(self) -> Iterator[None]:
        """Count what this block creates separately as well."""
        self._in_part = True
        try:
            yield
        finally:
            self._in_part = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._counted:
            return
        size = -(-storage.nbytes() // _BLOCK_BYTES) * _BLOCK_BYTES
        self._counted.add(key)
        self.live += size
        self._part_live += size * self._in_part
        weakref.finalize(storage, self._release, key, size, self._in_part)
        if self.live > self.peak:
            self.peak, self.part_at_peak = self.live, self._part_live

    def _release(self, key: int, size: int, in_part: bool) -> None:
        self._counted.discard(key)
        self.live -= size
        self._part_live -= size * in_part


@contextmanager
def emulating_cuda(*, fused: bool = False) -> Iterator[None]:
    """Let attention and dropout allocate as their CUDA kernels do, also while a backward pass recomputes.

    Args:
        fused: the loss's arithmetic between its two matrix products is one compiled kernel.
    """
    replacements: list[tuple[Any, str, Any]] = [
        (functional, "scaled_dot_product_attention", _attention),
        (functional, "dropout", _dropout),
    ]
    if fused:
        replacements.append((chunked_loss, "_errors", _fused_errors))
    originals = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    for module, name, function in replacements:
        setattr(module, name, function)
    try:
        yield
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def _fused_errors(logits: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return logits.new_empty((), dtype=torch.float32), torch.empty_like(logits, dtype=dtype)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    return _Attention.apply(query, key, value, attn_mask)  # type: ignore[no-untyped-call]


class _Attention(torch.autograd.Function):
    """The memory-efficient kernel that torch takes with a mask: it keeps q, k, v, output, float32 row sums and mask."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # the kernel writes (batch, tokens, heads, width)
        out = query.new_empty(query.transpose(1, 2).shape[:-1] + value.shape[-1:]).transpose(1, 2)
        row_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        bias = None if mask is None else mask.new_empty(mask.shape, dtype=query.dtype)
        ctx.save_for_backward(query, key, value, out, row_sums, bias)
        return out

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, _out, row_sums, _bias = ctx.saved_tensors
        torch.empty_like(row_sums)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


class FourBitProduct(torch.autograd.Function):
    """x Wᵀ with W (out, in) in NF4; forward and backward each dequantize all of W to the dtype of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, out_features: int, in_features: int) -> Tensor:
        ctx.shape = (out_features, in_features)
        return x @ x.new_empty(ctx.shape).T

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return outer[0] @ outer[0].new_empty(ctx.shape), None, None, None
