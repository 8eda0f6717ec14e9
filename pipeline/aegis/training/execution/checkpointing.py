"""Activation checkpointing, one decoder layer at a time, and the stores for what the layers keep.

(Chen et al. 2016, arXiv:1604.06174.) This module has its own checkpoint function: torch's reads the state of the random
generator to repeat dropout, and a captured CUDA graph cannot do that. Here dropout is a function of a seed
(`kernels.dropout`) and repeats by itself.

A layer that is not compiled keeps its input. A compiled layer checkpoints itself (`execution.compile`), and the store
takes what it saves through autograd's hooks. Offloaded tensors are copied on a separate stream while the next layers
compute, and come back one layer ahead of their use. This holds for the inputs of checkpointed layers, and for
everything that an offloaded layer keeps: an offloaded layer recomputes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aegis.training.execution.pinned import pinning

Layer = Callable[[Tensor], Tensor]

_MATRIX_NDIM = 2
"""Weights and their codes have at most this many dimensions."""


class Slot(NamedTuple):
    """Where a store keeps a tensor: the layer's number in the pass, and the tensor's number in the layer."""

    layer: int
    number: int


class ActivationStore:
    """Keeps the tensors that layers need for their backward passes, on the device where they were computed.

    Layers are pushed in the order of the forward pass and popped in reverse. `HostActivationStore` offloads them.
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
        assert not any(map(_any_left, self._layers[slot.layer + 1 :])), "layers are popped in reverse"
        del self._layers[slot.layer + 1 :]
        tensor, self._layers[-1][slot.number] = self._layers[-1][slot.number], None
        assert tensor is not None, "a slot is popped once"
        if not _any_left(self._layers[-1]):
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


class HostActivationStore(ActivationStore):
    """Keeps the tensors in pinned host memory; every pass uses the same buffers.

    The computing stream owns the memory on the device and waits for a copy before it releases a tensor.
    `record_stream` would have the allocator do the same, but in a graph capture it holds every tensor until the capture
    ends.

    Args:
        device: the layers' device, where the tensors come back to.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream = torch.cuda.Stream()
        self._device = device
        self._host_buffers: list[list[Tensor]] = []
        self._layer = self._number = -1
        self._copies_to_host: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()
        self._copies_to_gpu: dict[int, tuple[torch.cuda.Event, list[Tensor | None]]] = {}

    @property
    def resident_layers(self) -> set[int]:
        """The layers with kept tensors on the GPU now: being copied out, or back again."""
        return {layer for layer, *_ in self._copies_to_host} | self._copies_to_gpu.keys()

    def start(self) -> None:
        self._layer = self._number = -1
        self._copies_to_host.clear()
        self._copies_to_gpu.clear()

    def begin(self) -> None:
        self._layer, self._number = self._layer + 1, -1
        if self._layer == len(self._host_buffers):
            self._host_buffers.append([])
        while self._copies_to_host and self._copies_to_host[0][0] < self._layer - 1:
            self._wait_oldest()

    def push(self, tensor: Tensor) -> Slot:
        self._number += 1
        buffers = self._host_buffers[self._layer]
        if self._number == len(buffers):
            with pinning():
                # the compiled backward pass expects the tensor's own strides
                buffers.append(torch.empty_like(tensor, device="cpu", pin_memory=True))
        self._copies_to_host.append((self._layer, self._copy([(buffers[self._number], tensor)]), tensor))
        return Slot(self._layer, self._number)

    def pop(self, slot: Slot) -> Tensor:
        self._wait_all()
        self._layer = slot.layer - 1
        for wanted in (slot.layer, slot.layer - 1):
            if wanted >= 0 and wanted not in self._copies_to_gpu:
                self._fetch(wanted)
        event, tensors = self._copies_to_gpu[slot.layer]
        torch.cuda.current_stream().wait_event(event)
        tensor, tensors[slot.number] = tensors[slot.number], None
        assert tensor is not None, "a slot is popped once"
        if not _any_left(tensors):
            del self._copies_to_gpu[slot.layer]
        return tensor

    def drain(self, hidden: Tensor) -> None:
        """Release what is still being copied out before the step's peak; the copies back begin after the peak."""
        self._wait_all()
        if hidden.requires_grad:
            last = self._layer
            hidden.register_hook(lambda _: self._fetch(last))

    def _fetch(self, layer: int) -> None:
        buffers = self._host_buffers[layer]
        tensors = [torch.empty_like(buffer, device=self._device) for buffer in buffers]
        self._copies_to_gpu[layer] = self._copy(list(zip(tensors, buffers, strict=True))), [*tensors]

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return event

    def _wait_oldest(self) -> None:
        _, event, _ = self._copies_to_host.popleft()
        torch.cuda.current_stream().wait_event(event)

    def _wait_all(self) -> None:
        while self._copies_to_host:
            self._wait_oldest()


def _any_left(tensors: Sequence[Tensor | None]) -> bool:
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
