"""The ways to train that a plan compares: the config's own, and its neighbours."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from aegis.config import TrainConfig
from aegis.training.acceleration import COMPILE_STEPS, SPARE
from aegis.training.estimate import Blueprint, Estimate


@dataclass(frozen=True)
class Variant:
    """One way to train: this config's, or a neighbour of it. `recomputed` counts layers."""

    max_length: int
    recomputed: int
    offloaded: bool
    asked_for: bool
    memory: Estimate


class Ways:
    """This config's way to train, and the next smaller and larger ones.

    Args:
        kind: "cuda" or "cpu".
        free_bytes: of the GPU's memory, None if it is not here.
    """

    def __init__(self, blueprint: Blueprint, config: TrainConfig, kind: str, free_bytes: int | None) -> None:
        self._blueprint, self._config, self._free = blueprint, config, free_bytes
        self._on_gpu = kind == "cuda"
        # as Acceleration.choose, which asks the GPU
        worthwhile = self._on_gpu and config.max_steps >= COMPILE_STEPS
        self.compiled = config.compile == "on" or (config.compile == "auto" and worthwhile)
        self._offloaded = config.activation_checkpointing == "offload" and self._on_gpu

    def all(self) -> Iterator[Variant]:
        """The config's own first; half and twice its length; then the other end of recomputation."""
        length = self._config.max_length
        own = self._own(length)
        yield own
        yield replace(self._own(max(8, length // 2)), asked_for=False)
        yield replace(self._own(2 * length), asked_for=False)
        yield self._variant(length, 0 if own.recomputed else self._blueprint.layers)

    def _own(self, length: int) -> Variant:
        wanted, layers = self._config.activation_checkpointing, self._blueprint.layers
        if wanted != "auto":
            return self._variant(length, 0 if wanted == "off" else layers, offloaded=self._offloaded, asked_for=True)
        kept = self._variant(length, 0, asked_for=True)
        if self._free is None or not self._on_gpu or kept.memory.peak <= SPARE * self._free:
            return kept
        # "auto" recomputes as many layers as it takes; what one of them saves is the same for all
        saved = (kept.memory.peak - self._variant(length, layers).memory.peak) / layers
        needed = math.ceil((kept.memory.peak - SPARE * self._free) / max(1.0, saved))
        return self._variant(length, min(layers, needed), asked_for=True)

    def _variant(self, length: int, recomputed: int, *, offloaded: bool = False, asked_for: bool = False) -> Variant:
        memory = self._blueprint.estimate(length, recomputed=recomputed, compiled=self.compiled, offloaded=offloaded)
        return Variant(length, recomputed, offloaded, asked_for, memory)
