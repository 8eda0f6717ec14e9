"""Keeps in the host's memory what layers need for their backward passes.

Offloaded tensors are copied on a separate stream while the next layers compute, and come back one layer ahead of their
use. This holds for the inputs of checkpointed layers, and for everything that an offloaded layer keeps: an offloaded
layer recomputes nothing.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from aegis.training.execution.activation_checkpointing import ActivationStore, Slot, any_left
from aegis.training.execution.pinned_memory import pinning


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
        self._pushed: list[int] = []
        self._layer = self._number = -1
        self._copies_to_host: deque[tuple[int, torch.cuda.Event, Tensor]] = deque()
        self._copies_to_gpu: dict[int, tuple[torch.cuda.Event, list[Tensor | None]]] = {}

    def start(self) -> None:
        self._layer = self._number = -1
        self._copies_to_host.clear()
        self._copies_to_gpu.clear()

    def begin(self) -> None:
        self._layer, self._number = self._layer + 1, -1
        if self._layer == len(self._host_buffers):
            self._host_buffers.append([])
            self._pushed.append(0)
        while self._copies_to_host and self._copies_to_host[0][0] < self._layer - 1:
            self._wait_oldest()

    def push(self, tensor: Tensor) -> Slot:
        self._number += 1
        buffers, self._pushed[self._layer] = self._host_buffers[self._layer], self._number + 1
        if self._number < len(buffers) and not _fits(buffers[self._number], tensor):
            # in a finish, the layers have other weights and keep other tensors
            del buffers[self._number :]
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
        if not any_left(tensors):
            del self._copies_to_gpu[slot.layer]
        return tensor

    def drain(self, hidden: Tensor) -> None:
        """Release what is still being copied out before the step's peak; the copies back begin after the peak."""
        self._wait_all()
        if hidden.requires_grad:
            last = self._layer
            hidden.register_hook(lambda _: self._fetch(last))

    def _fetch(self, layer: int) -> None:
        buffers = self._host_buffers[layer][: self._pushed[layer]]
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


def _fits(buffer: Tensor, tensor: Tensor) -> bool:
    """Whether a buffer is what would be allocated for a tensor."""
    wanted = torch.empty_like(tensor, device="meta")
    return (buffer.dtype, buffer.shape, buffer.stride()) == (wanted.dtype, wanted.shape, wanted.stride())
