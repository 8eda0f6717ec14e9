"""The ways to train that a plan compares: the config's own, and its neighbours."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from aegis.config import TrainConfig
from aegis.training.acceleration import SPARE, compiles, host_bytes, spares_attention
from aegis.training.estimate import Blueprint, Estimate, Held

PROCESSES = (2, 3, 4, 8)
"""How many a base may be split over; the launcher knows, and a plan is made before it."""


@dataclass(frozen=True)
class Variant:
    """One way to train: this config's, or a neighbour of it. `recomputed` counts layers.

    Attributes:
        host_bytes: of the host's memory, for what is offloaded.
        held: what each of `processes` has of a base that is split over them.
    """

    max_length: int
    recomputed: int
    offloaded: bool
    asked_for: bool
    memory: Estimate
    host_bytes: int = 0
    processes: int = 1
    held: Held | None = None


class Ways:
    """This config's way to train, and the next smaller and larger ones.

    Args:
        kind: "cuda" or "cpu".
        free_bytes: of the GPU's memory, what training may take; None if the GPU is not here and there is no cap.
    """

    def __init__(self, blueprint: Blueprint, config: TrainConfig, kind: str, free_bytes: int | None) -> None:
        self._blueprint, self._config, self._free = blueprint, config, free_bytes
        self._on_gpu = kind == "cuda"
        # whether a GPU has the kernels for it is found out in training
        self.compiled = compiles(config, possible=self._on_gpu)
        self._offloaded = config.activation_checkpointing == "offload" and self._on_gpu

    def all(self) -> Iterator[Variant]:
        """The config's own first; half and twice its length; then the other end of recomputation.

        Of a base that is split: the config's own, in as many processes as there may be.
        """
        length = self._config.max_length
        if self._config.split_base:
            yield from (self._split(length, parts) for parts in PROCESSES)
            return
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
        spared = offloaded and self._spares_attention(length)
        memory = self._blueprint.estimate(
            length,
            recomputed=recomputed,
            compiled=self.compiled,
            offloaded=offloaded,
            attention_spared=spared,
        )
        return Variant(length, recomputed, offloaded, asked_for, memory, self._host_bytes(length, spared) * offloaded)

    def _spares_attention(self, length: int) -> bool:
        config = self._config.model_copy(update={"max_length": length})
        itemsize = self._blueprint.dtype.itemsize
        free = sys.maxsize if self._free is None else self._free - self._blueprint.base_bytes
        return self.compiled and spares_attention(config, self._blueprint.text, itemsize, free)

    def _host_bytes(self, length: int, attention_spared: bool) -> int:
        tokens, itemsize = self._config.batch_size * length, self._blueprint.dtype.itemsize
        return host_bytes(self._blueprint.text, tokens, itemsize, attention_spared=attention_spared)

    def _split(self, length: int, parts: int) -> Variant:
        layers, offloaded = self._blueprint.layers, self._offloaded
        memory = self._blueprint.estimate(length, recomputed=layers, offloaded=offloaded, parts=parts)
        held = self._blueprint.held(parts, offloaded=offloaded)
        host = self._host_bytes(length, False) * offloaded
        return Variant(length, layers, offloaded, True, memory, host, parts, held)
