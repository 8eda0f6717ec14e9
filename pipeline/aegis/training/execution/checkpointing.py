"""Activation recomputation, one decoder layer at a time, with what is kept on the GPU or in the host's memory.

(Chen et al. 2016, arXiv:1604.06174.) Written out, since torch's own checkpoint reads the random generator's state to
repeat dropout, which a captured CUDA graph cannot; here dropout is a function of a seed (`model.dropout`) and repeats
by itself. A layer that is not compiled keeps its input; a compiled one recomputes by itself (`compiling`), and what it
keeps is seen on its way. What is offloaded travels on a stream of its own while the next layers compute, and comes back
one layer ahead of its use. So does all that a compiled layer keeps which is parked: it works nothing out again.
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
Recomputation = Callable[[Layer, Tensor], Tensor]

_MATRIX_NDIM = 2
"""Dimensions of weights and of their codes, at most."""


class Slot(NamedTuple):
    """Where a tensor is kept: the layer's number in the pass, and its own in the layer."""

    layer: int
    number: int


class ActivationStore:
    """Keeps what layers need for their backward passes in the order of the forward pass, and gives it back in reverse.

    On the device it came on; `HostKeeper` sends it away.
    """

    def __init__(self) -> None:
        self._kept: list[list[Tensor | None]] = []
        self._shared: frozenset[int] = frozenset()
        self._tokens: frozenset[int] = frozenset()
        self._rows = 0
        # always the same two, or compiled layers would be compiled anew
        self._hooks = self._pack, self._unpack

    def start(self) -> None:
        """A forward pass begins; what one before it has left, if it came to no end, is forgotten."""
        self._kept.clear()

    def begin(self) -> None:
        """What is kept from now on is another layer's."""
        self._kept.append([])

    def push(self, tensor: Tensor) -> Slot:
        """Keep one more tensor of the layer; returns its place."""
        self._kept[-1].append(tensor)
        return Slot(len(self._kept) - 1, len(self._kept[-1]) - 1)

    def pop(self, place: Slot) -> Tensor:
        """Give back what was kept, and let go of it."""
        assert not any(map(_any_left, self._kept[place.layer + 1 :])), "layers are taken back in reverse"
        del self._kept[place.layer + 1 :]
        tensor, self._kept[-1][place.number] = self._kept[-1][place.number], None
        assert tensor is not None, "what is kept is taken back once"
        if not _any_left(self._kept[-1]):
            self._kept.pop()
        return tensor

    @contextmanager
    def saving(self, hidden: Tensor, shared: Iterable[Tensor]) -> Iterator[None]:
        """Keep whatever a layer that runs in the block saves of each token for its backward pass.

        Args:
            hidden: (batch, length, hidden_size), the layer's input.
            shared: what every layer is given, cosines and sines, say, and the layer's weights; it stays where it is.
        """
        self._shared = frozenset(tensor.data_ptr() for tensor in shared)
        self._rows = hidden.shape[0] * hidden.shape[1]
        # by windows, or flattened
        self._tokens = frozenset((hidden.shape[1], self._rows))
        self.begin()
        with torch.autograd.graph.saved_tensors_hooks(*self._hooks):
            yield

    def drain(self, hidden: Tensor) -> None:
        """The last layer is about to run, and keeps nothing here.

        Args:
            hidden: its input; what was kept is needed when the gradient of this has come.
        """

    def _pack(self, saved: Tensor) -> Tensor | Slot:
        return self.push(saved) if self._has_tokens(saved) else saved

    def _has_tokens(self, saved: Tensor) -> bool:
        if saved.data_ptr() in self._shared:
            return False
        if saved.ndim <= _MATRIX_NDIM:
            # flattened for a matrix product; what else the layer has of matrices has other rows, or is small
            return saved.ndim == _MATRIX_NDIM and saved.shape[0] == self._rows
        return not self._tokens.isdisjoint(saved.shape)

    def _unpack(self, packed: Tensor | Slot) -> Tensor:
        return self.pop(packed) if isinstance(packed, Slot) else packed


class HostActivationStore(ActivationStore):
    """Keeps in pinned host memory; the buffers are reused by every pass.

    Memory on the device belongs to the computing stream, which waits for a copy before it lets a buffer go.
    `record_stream` would say the same to the allocator, but in a graph capture it keeps every buffer until the capture
    ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stream = torch.cuda.Stream()
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._host: list[list[Tensor]] = []
        self._layer = self._number = -1
        self._leaving: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()
        self._coming: dict[int, tuple[torch.cuda.Event, list[Tensor | None]]] = {}

    def start(self) -> None:
        self._layer = self._number = -1
        self._leaving.clear()
        self._coming.clear()

    def begin(self) -> None:
        self._layer, self._number = self._layer + 1, -1
        if self._layer == len(self._host):
            self._host.append([])
        while self._leaving and self._leaving[0][0] < self._layer - 1:
            self._wait_oldest()

    def push(self, tensor: Tensor) -> Slot:
        self._number += 1
        buffers = self._host[self._layer]
        if self._number == len(buffers):
            with pinning():
                # as it lies in memory: the compiled backward pass was promised its strides
                buffers.append(torch.empty_like(tensor, device="cpu", pin_memory=True))
        self._leaving.append((self._layer, self._copy([(buffers[self._number], tensor)]), tensor))
        return Slot(self._layer, self._number)

    def pop(self, place: Slot) -> Tensor:
        while self._leaving:
            self._wait_oldest()
        self._layer = place.layer - 1
        for wanted in (place.layer, place.layer - 1):
            if wanted >= 0 and wanted not in self._coming:
                self._fetch(wanted)
        event, tensors = self._coming[place.layer]
        torch.cuda.current_stream().wait_event(event)
        tensor, tensors[place.number] = tensors[place.number], None
        assert tensor is not None, "what is kept is taken back once"
        if not _any_left(tensors):
            del self._coming[place.layer]
        return tensor

    def drain(self, hidden: Tensor) -> None:
        """Let go of what is still leaving before a step is at its fullest; it begins to come back after that."""
        while self._leaving:
            self._wait_oldest()
        if hidden.requires_grad:
            last = self._layer
            hidden.register_hook(lambda _: self._fetch(last))

    def _fetch(self, layer: int) -> None:
        found = [torch.empty_like(buffer, device=self._device) for buffer in self._host[layer]]
        self._coming[layer] = self._copy(list(zip(found, self._host[layer], strict=True))), [*found]

    def _copy(self, pairs: list[tuple[Tensor, Tensor]]) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return event

    def _wait_oldest(self) -> None:
        _, event, _ = self._leaving.popleft()
        torch.cuda.current_stream().wait_event(event)


def _any_left(tensors: Sequence[Tensor | None]) -> bool:
    return any(tensor is not None for tensor in tensors)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: Layer, store: ActivationStore) -> Tensor:
        ctx.layer, ctx.store = layer, store
        store.begin()
        ctx.place = store.push(hidden)
        with torch.no_grad():
            return layer(hidden)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        hidden = ctx.store.pop(ctx.place).detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(hidden)
        torch.autograd.backward(output, outer[0])
        return hidden.grad, None, None


def checkpointed(layer: Layer, hidden: Tensor, store: ActivationStore) -> Tensor:
    """Return layer(hidden), of which nothing is kept but `hidden`; parameters get their gradients all the same.

    Args:
        layer: a pure function of the hidden state and of parameters; dropout must repeat by itself.
        hidden: (batch, length, hidden_size). If it needs no gradient, as the embeddings' output does not, it is given
            one, or autograd would not come by.
    """
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    output: Tensor = _Recomputed.apply(hidden, layer, store)  # type: ignore[no-untyped-call]
    return output


def saving_to(layer: Layer, hidden: Tensor, store: ActivationStore, shared: Iterable[Tensor]) -> Tensor:
    """Return layer(hidden) of a compiled layer; what it keeps of each token goes to the keeper.

    Args:
        shared: as `Keeper.keeping`.
    """
    with store.saving(hidden, shared):
        return layer(hidden)
