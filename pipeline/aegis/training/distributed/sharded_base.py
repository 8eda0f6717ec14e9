"""A base that several processes hold: each keeps a shard of every decoder layer, and gathers two layers at a time.

This is ZeRO's third stage (Rajbhandari et al. 2020, arXiv:1910.02054) for frozen weights: no gradient is scattered.
Every layer must be checkpointed: by the time of its backward pass, the buffer of its weights holds another layer's.
Embeddings, norms and LM head are replicated in every process.
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
"""Layers that are complete at a time: the one that runs, and the one that is being gathered."""
_ALIGNED_BYTES = 256
"""Every tensor begins at a multiple of this, so that any kernel can read it."""


def layout(sizes: Iterable[int], world_size: int) -> tuple[list[int], int]:
    """Lay out tensors of these sizes, in bytes, in one row that `world_size` divides.

    Returns:
        The start of each tensor, and the size of the row.
    """
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += math.ceil(size / _ALIGNED_BYTES) * _ALIGNED_BYTES
    return starts, math.ceil(end / (world_size * _ALIGNED_BYTES)) * world_size * _ALIGNED_BYTES


class ShardedBase:
    """The matrices of the decoder layers, of which this process keeps one shard per layer.

    Args:
        layers: loaded and frozen, in host memory or on `device`; the caller moves everything else.
        rank: this process's number.
        world_size: number of processes; all of them shard the same layers.
        device: where the shards are kept and the layers are gathered.

    Attributes:
        buffer_bytes: memory for the gathered layers.
    """

    def __init__(self, layers: nn.ModuleList, rank: int, world_size: int, device: torch.device) -> None:
        self._layers = [_ShardedLayer(layer, rank, world_size, device) for layer in layers]
        largest = max(layer.bytes for layer in self._layers)
        self._buffers = [
            _Buffer(torch.empty(largest, dtype=torch.uint8, device=device)) for _ in self._layers[:RESIDENT_LAYERS]
        ]
        self.buffer_bytes = sum(buffer.memory.nbytes for buffer in self._buffers)

    def gather(self, number: int) -> None:
        """Make layer `number` complete, until the layer after the next one is gathered; all processes call this alike.

        Raises:
            PeerEnded: another process has ended.
        """
        with dead_peers_explained():
            self._start_gather(number).wait()
            # the backward pass recomputes a layer with gradients on, from the last layer to the first
            following = number - 1 if torch.is_grad_enabled() else number + 1
            if 0 <= following < len(self._layers):
                self._start_gather(following)

    def _start_gather(self, number: int) -> _Buffer:
        buffer, layer = self._buffers[number % len(self._buffers)], self._layers[number]
        if buffer.layer != number:
            if buffer.layer is not None:
                # an ungathered layer must be empty, not hold another layer's bytes
                self._layers[buffer.layer].unbind()
            row = buffer.memory[: layer.bytes]
            layer.bind(row)
            buffer.layer, buffer.work = number, dist.all_gather_into_tensor(row, layer.shard, async_op=True)
        return buffer


@dataclass
class _Buffer:
    """Memory for one gathered layer: the layer's number, and the collective call that fills it."""

    memory: Tensor
    layer: int | None = None
    work: Any = None

    def wait(self) -> None:
        if self.work is not None:
            self.work.wait()
            self.work = None


class _ShardedLayer:
    """One layer's matrices as one row of `bytes` bytes, of which this process keeps `shard`."""

    def __init__(self, layer: nn.Module, rank: int, world_size: int, device: torch.device) -> None:
        self._tensors = [(p, p.data.shape, p.data.dtype) for p in layer.parameters() if p.ndim > 1]
        tensors = [p.data.contiguous().view(-1).view(torch.uint8) for p, _, _ in self._tensors]
        self._starts, self.bytes = layout((tensor.numel() for tensor in tensors), world_size)
        row = torch.zeros(self.bytes, dtype=torch.uint8)
        for start, tensor in zip(self._starts, tensors, strict=True):
            row[start : start + tensor.numel()] = tensor
        self.shard = row.view(world_size, -1)[rank].to(device, copy=True)
        layer.register_buffer("aegis_shard", self.shard, persistent=False)
        self.unbind()
        for parameter, _, _ in self._tensors:
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                state.to(device)

    def bind(self, row: Tensor) -> None:
        """Make the parameters views of `row`, which is being filled."""
        for (parameter, shape, dtype), start in zip(self._tensors, self._starts, strict=True):
            end = start + math.prod(shape) * dtype.itemsize
            parameter.data = row[start:end].view(dtype).view(shape)

    def unbind(self) -> None:
        """Make the parameters empty, as they are while the layer is not gathered."""
        for parameter, _, dtype in self._tensors:
            parameter.data = torch.empty(0, dtype=dtype, device=self.shard.device)
