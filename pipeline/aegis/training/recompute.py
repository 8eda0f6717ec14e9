"""Activation recomputation, one decoder layer at a time, with the kept inputs on the GPU or in the host's memory.

(Chen et al. 2016, arXiv:1604.06174.) Written out, since torch's own checkpoint reads the random generator's state to
repeat dropout, which a captured CUDA graph cannot; here dropout is a function of a seed (`model.dropout`) and repeats
by itself. Offloaded inputs travel on a stream of their own while the next layers compute, and come back one layer
ahead of their use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

Layer = Callable[[Tensor], Tensor]
Recomputation = Callable[[Layer, Tensor], Tensor]


class Keeper:
    """Keeps layer inputs in the order of the forward pass, and gives them back in reverse.

    Args:
        offload: keep them in pinned host memory; the buffers are reused by every pass.
    """

    def __init__(self, *, offload: bool) -> None:
        self._kept: list[Tensor] = []
        self._offload = _Offload() if offload else None
        self._expected: Tensor | None = None
        self._hooks = self._pack, self._unpack  # always the same two, or compiled layers would be compiled anew

    def keep(self, hidden: Tensor) -> int:
        """Keep one more input; returns its place."""
        if self._offload is not None:
            return self._offload.send(hidden)
        self._kept.append(hidden)
        return len(self._kept) - 1

    def take(self, place: int) -> Tensor:
        """Give back what was kept last."""
        if self._offload is not None:
            return self._offload.fetch(place)
        assert place == len(self._kept) - 1, "inputs are taken back in reverse"
        return self._kept.pop()

    @contextmanager
    def keeping(self, hidden: Tensor) -> Iterator[None]:
        """Keep `hidden`, and nothing else, for whichever function in the block saves it for its backward pass."""
        self._expected = hidden
        try:
            with torch.autograd.graph.saved_tensors_hooks(*self._hooks):
                yield
        finally:
            self._expected = None

    def _pack(self, saved: Tensor) -> Tensor | int:
        expected = self._expected
        if expected is None or saved.data_ptr() != expected.data_ptr() or saved.shape != expected.shape:
            return saved
        return self.keep(saved)

    def _unpack(self, packed: Tensor | int) -> Tensor:
        return self.take(packed) if isinstance(packed, int) else packed


class _Offload:
    """The way to the host and back.

    Memory belongs to the computing stream, which waits for a copy before it lets a buffer go. `record_stream` would
    say the same to the allocator, but in a graph capture it keeps every buffer until the capture ends.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._host: list[Tensor] = []
        self._sent = 0
        self._leaving: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        self._coming: dict[int, tuple[torch.cuda.Event, Tensor]] = {}

    def send(self, hidden: Tensor) -> int:
        place, self._sent = self._sent, self._sent + 1
        if place == len(self._host):
            self._host.append(torch.empty(hidden.shape, dtype=hidden.dtype, pin_memory=True))
        while len(self._leaving) > 1:
            self._see_off()
        self._leaving.append((self._copy(self._host[place], hidden), hidden))
        return place

    def fetch(self, place: int) -> Tensor:
        while self._leaving:
            self._see_off()
        self._sent = place
        for wanted in (place, place - 1):
            if wanted >= 0 and wanted not in self._coming:
                found = torch.empty_like(self._host[wanted], device=torch.device("cuda", torch.cuda.current_device()))
                self._coming[wanted] = self._copy(found, self._host[wanted]), found
        event, found = self._coming.pop(place)
        torch.cuda.current_stream().wait_event(event)
        return found

    def _copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        return event

    def _see_off(self) -> None:
        event, _ = self._leaving.popleft()
        torch.cuda.current_stream().wait_event(event)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: Layer, keeper: Keeper) -> Tensor:
        ctx.layer, ctx.keeper = layer, keeper
        ctx.place = keeper.keep(hidden)
        with torch.no_grad():
            return layer(hidden)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None]:
        hidden = ctx.keeper.take(ctx.place).detach().requires_grad_()
        with torch.enable_grad():
            output = ctx.layer(hidden)
        torch.autograd.backward(output, outer[0])
        return hidden.grad, None, None


def recomputed(layer: Layer, hidden: Tensor, keeper: Keeper) -> Tensor:
    """Return layer(hidden), of which nothing is kept but `hidden`; parameters get their gradients all the same.

    Args:
        layer: a pure function of the hidden state and of parameters; dropout must repeat by itself.
        hidden: (batch, length, hidden_size). If it needs no gradient, as the embeddings' output does not, it is given
            one, or autograd would not come by.
    """
    if not hidden.requires_grad:
        hidden = hidden.detach().requires_grad_()
    output: Tensor = _Recomputed.apply(hidden, layer, keeper)  # type: ignore[no-untyped-call]
    return output


def kept_elsewhere(layer: Layer, hidden: Tensor, keeper: Keeper) -> Tensor:
    """Return layer(hidden) of a layer that recomputes by itself, whose kept input goes to the keeper."""
    with keeper.keeping(hidden):
        return layer(hidden)
