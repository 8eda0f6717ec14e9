"""A base that several processes hold: each keeps a part of every decoder layer, and two at a time are put together.

ZeRO's third stage (Rajbhandari et al. 2020, arXiv:1910.02054) for weights that are frozen: no gradient ever goes the
other way. Every layer must be recomputed in the backward pass: a weight that was kept for it would by then be another
layer's. Embeddings, norms and LM head stay whole in every process.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from aegis.training.distributed.group import dead_peers_explained

RESIDENT_LAYERS = 2
"""Layers that are whole at a time: the one that is worked on, and the one that is on its way."""
_ALIGNED_BYTES = 256
"""Where a tensor may begin, for any kernel to read it."""


def layout(sizes: Iterable[int], parts: int) -> tuple[list[int], int]:
    """Lay tensors of so many bytes in one row that so many parts divide.

    Returns:
        where each of them begins, and the bytes of the row.
    """
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += math.ceil(size / _ALIGNED_BYTES) * _ALIGNED_BYTES
    return starts, math.ceil(end / (parts * _ALIGNED_BYTES)) * parts * _ALIGNED_BYTES


class ShardedBase:
    """The decoder layers' matrices, of which this process keeps one part in so many.

    Args:
        layers: loaded and frozen, in the host's memory or on `device`; everything else is the caller's to move.
        rank: of this process.
        parts: how many processes there are; all of them make one, of equal layers.
        device: where the parts are kept and the layers put together.
    """

    def __init__(self, layers: nn.ModuleList, rank: int, parts: int, device: torch.device) -> None:
        self._layers = [_Layer(layer, rank, parts, device) for layer in layers]
        largest = max(layer.bytes for layer in self._layers)
        self._rooms = [
            _Buffer(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in self._layers[:RESIDENT_LAYERS]
        ]

    def gather(self, number: int) -> None:
        """Make layer `number` whole, until the layer after the next one is; all processes must come here alike.

        Raises:
            EnvironmentFault: another process has ended.
        """
        with dead_peers_explained():
            self._begin(number).wait()
            # the backward pass works a layer out again with gradients on, and comes from behind
            following = number - 1 if torch.is_grad_enabled() else number + 1
            if 0 <= following < len(self._layers):
                self._begin(following)

    def _begin(self, number: int) -> _Buffer:
        room, layer = self._rooms[number % len(self._rooms)], self._layers[number]
        if room.holds != number:
            if room.holds is not None:
                # whoever came to it unasked would find another layer's bytes
                self._layers[room.holds].unbind()
            whole = room.memory[: layer.bytes]
            layer.bind(whole)
            room.holds, room.arriving = number, dist.all_gather_into_tensor(whole, layer.part, async_op=True)
        return room


@dataclass
class _Buffer:
    """Memory for one layer: which one it holds, and what is to be waited for before it is there."""

    memory: Tensor
    holds: int | None = None
    arriving: Any = None

    def wait(self) -> None:
        if self.arriving is not None:
            self.arriving.wait()
            self.arriving = None


class _Layer:
    """One layer's matrices as one row of bytes: `bytes` of it in all, of which `part` is kept."""

    def __init__(self, layer: nn.Module, rank: int, parts: int, device: torch.device) -> None:
        self._tensors = [(p, p.data.shape, p.data.dtype) for p in layer.parameters() if p.ndim > 1]
        rows = [p.data.contiguous().view(-1).view(torch.uint8) for p, _, _ in self._tensors]
        self._starts, self.bytes = layout((row.numel() for row in rows), parts)
        whole = torch.zeros(self.bytes, dtype=torch.uint8)
        for start, row in zip(self._starts, rows, strict=True):
            whole[start : start + row.numel()] = row
        self.part = whole.view(parts, -1)[rank].to(device, copy=True)
        layer.register_buffer("aegis_part", self.part, persistent=False)
        self.unbind()
        for parameter, _, _ in self._tensors:
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                state.to(device)

    def bind(self, whole: Tensor) -> None:
        """Let the parameters be what these bytes are, or soon will be."""
        for (parameter, shape, dtype), start in zip(self._tensors, self._starts, strict=True):
            end = start + math.prod(shape) * dtype.itemsize
            parameter.data = whole[start:end].view(dtype).view(shape)

    def unbind(self) -> None:
        """Let the parameters be empty, as they are while the layer is in parts."""
        for parameter, _, dtype in self._tensors:
            parameter.data = torch.empty(0, dtype=dtype, device=self.part.device)
