"""Splits the measured peak memory of a training into its parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from aegis.model.load import footprint
from aegis.training.execution.allocator import peak_bytes
from aegis.training.state import TrainState


@dataclass(frozen=True)
class MemoryParts:
    """Bytes by part. `activations` is the peak without the other parts: activations, head, loss and workspace."""

    base: int
    adapter: int
    soul: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def by_part(state: TrainState, device: torch.device) -> MemoryParts:
    """Split the peak so far into its parts."""
    parameters = state.parameters()
    adapter = sum(p.nbytes for name, p in parameters.items() if name.startswith("adapter."))
    soul = sum(tensor.nbytes for tensor in [*state.soul.parameters(), *state.soul.buffers()])
    trained = sum(p.nbytes for p in parameters.values() if p.requires_grad)
    moments = sum(
        value.nbytes
        for buffers in state.optimizer.state.values()
        for value in buffers.values()
        if isinstance(value, torch.Tensor)
    )
    base = footprint(state.model, device) - adapter
    peak = peak_bytes(device)
    return MemoryParts(
        base, adapter, soul, trained, moments, max(0, peak - base - adapter - soul - trained - moments), peak
    )
