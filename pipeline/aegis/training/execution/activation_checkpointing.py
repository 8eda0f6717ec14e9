"""Activation checkpointing, one decoder layer at a time, and the stores for what the layers keep.

(Chen et al. 2016, arXiv:1604.06174.) This module has its own checkpoint function: torch's reads the state of the random
generator to repeat dropout, and a captured CUDA graph cannot do that. Here dropout is a function of a seed
(`kernels.dropout`) and repeats by itself.

A layer that is not compiled keeps its input. A compiled layer checkpoints itself (`execution.compile`), and the store
takes what it saves through autograd's hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]

_MATRIX_NDIM = 2
"""Weights and their codes have at most this many dimensions."""


class Slot(NamedTuple):
    """Where a store keeps a tensor: the layer's number in the pass, and the tensor's number in the layer."""

    layer: int
    number: int


class ActivationStore:
    """Keeps the tensors that layers need for their backward passes, on the device where they were computed.

    Layers are pushed in the order of the forward pass and popped in reverse. `offloading.HostActivationStore` offloads
    them.
    """

    def __init__(self) -> None:
        self._layers: list[list[Tensor | None]] = []
        self._shared_pointers: frozenset[int] = frozenset()
        self._token_sizes: frozenset[int] = frozenset()
        self._token_count = 0
        # always the same two functions, or compiled layers would be compiled again
        self._hooks = self._pack, self._unpack

    def start(self) -> None:
        """Begin a forward pass; drop what an unfinished pass left."""
        self._layers.clear()

    def begin(self) -> None:
        """Begin the next layer: `push` now adds to it."""
        self._layers.append([])

    def push(self, tensor: Tensor) -> Slot:
        """Keep one more tensor of the current layer; return its slot."""
        self._layers[-1].append(tensor)
        return Slot(len(self._layers) - 1, len(self._layers[-1]) - 1)

    def pop(self, slot: Slot) -> Tensor:
        """Return the tensor in `slot` and release it."""
        assert not any(map(any_left, self._layers[slot.layer + 1 :])), "layers are popped in reverse"
        del self._layers[slot.layer + 1 :]
        tensor, self._layers[-1][slot.number] = self._layers[-1][slot.number], None
        assert tensor is not None, "a slot is popped once"
        if not any_left(self._layers[-1]):
            self._layers.pop()
        return tensor

    @contextmanager
    def saving(self, hidden: Tensor, shared: Iterable[Tensor]) -> Iterator[None]:
        """Keep every tensor with a row per token that the layer in this block saves for its backward pass.

        Args:
            hidden: (batch, length, hidden_size), the layer's input.
            shared: tensors that stay where they are: the layer's weights, and what all layers get (cosines, sines).
        """
        self._shared_pointers = frozenset(tensor.data_ptr() for tensor in shared)
        self._token_count = hidden.shape[0] * hidden.shape[1]
        # a saved tensor has its windows apart, or flattened
        self._token_sizes = frozenset((hidden.shape[1], self._token_count))
        self.begin()
        with torch.autograd.graph.saved_tensors_hooks(*self._hooks):
            yield

    def drain(self, hidden: Tensor) -> None:
        """Prepare for the last layer, which keeps nothing here.

        Args:
            hidden: the last layer's input. The kept tensors are needed once its gradient has arrived.
        """

    def keeps(self, saved: Tensor) -> bool:
        """Whether a saved tensor has a row per token, and so belongs in the store."""
        if saved.data_ptr() in self._shared_pointers:
            return False
        if saved.ndim <= _MATRIX_NDIM:
            # flattened for a matrix product; the layer's other matrices have other rows, or are small
            return saved.ndim == _MATRIX_NDIM and saved.shape[0] == self._token_count
        return not self._token_sizes.isdisjoint(saved.shape)

    def _pack(self, saved: Tensor) -> Tensor | Slot:
        return self.push(saved) if self.keeps(saved) else saved

    def _unpack(self, packed: Tensor | Slot) -> Tensor:
        return self.pop(packed) if isinstance(packed, Slot) else packed


def any_left(tensors: Sequence[Tensor | None]) -> bool:
    """Whether a layer's tensors were not all popped."""
    return any(tensor is not None for tensor in tensors)


class _Checkpointed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: Layer, store: ActivationStore) -> Tensor:
        ctx.layer, ctx.store = layer, store
        store.begin()
        ctx.slot = store.push(hidden)
        with torch.no_grad():
            return layer(hidden)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        hidden = ctx.store.pop(ctx.slot).detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(hidden)
        torch.autograd.backward(output, outer[0])
        return hidden.grad, None, None


def checkpointed(layer: Layer, hidden: Tensor, store: ActivationStore) -> Tensor:
    """Return layer(hidden) and keep only `hidden` for the backward pass; parameters get their gradients as usual.

    Args:
        layer: a pure function of the hidden state and of parameters; dropout must repeat by itself.
        hidden: (batch, length, hidden_size). If it needs no gradient (the embeddings' output), it is given one, or
            autograd would skip the layer.
    """
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    output: Tensor = _Checkpointed.apply(hidden, layer, store)  # type: ignore[no-untyped-call]
    return output


def saving_to(layer: Layer, hidden: Tensor, store: ActivationStore, shared: Iterable[Tensor]) -> Tensor:
    """Return layer(hidden) of a compiled layer, with what it keeps of each token in the store.

    Args:
        shared: see `ActivationStore.saving`.
    """
    with store.saving(hidden, shared):
        return layer(hidden)
