"""Decides which weights of a base go through the NF4 round trip, in which dtype and on which device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from aegis import progress
from aegis.config.recorded import recorded_config
from aegis.config.train_settings import TrainConfig
from aegis.errors import UnsupportedModelError, UsageError
from aegis.merging.nf4_round_trip import Nf4Weight
from aegis.messages import phrase
from aegis.model.base import Base
from aegis.model.device import choose_device
from aegis.model.load import compute_dtype, nf4_weights
from aegis.model.shards import TensorEntry
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import MANIFEST, read_manifest


@dataclass(frozen=True)
class RoundTrip:
    """The weights that go through NF4, and how.

    Attributes:
        weights: their names in the base's shards.
        dtype: training's compute dtype; values are cast to it before, and come back in it.
        device: the device that quantizes.
    """

    weights: frozenset[str]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, base: Base, adapter: Path) -> RoundTrip:
        """Read from the adapter's manifest how its base was quantized; without one, as this machine would do it.

        Raises:
            UsageError: the adapter was trained on 16-bit weights.
            UnsupportedModelError: the base has no weights that can be quantized, or another name for one.
        """
        device = choose_device("auto")
        dtype = compute_dtype(device)
        if (adapter / MANIFEST).is_file():
            manifest = read_manifest(adapter)
            if recorded_config(manifest, TrainConfig).load_in != "4bit":
                raise UsageError("round_trip.none", adapter=adapter)
            facts = TrainFacts.of(manifest)
            dtype = getattr(torch, facts.compute_dtype)
            if facts.device != device.type:
                if device.type == "cpu":
                    progress.warn(phrase("round_trip.trained_on_gpu", adapter=adapter))
                device = torch.device("cpu")
        else:
            progress.warn(phrase("round_trip.unknown", adapter=adapter, dtype=dtype))
        return cls(round_trip_weights(base), dtype, device)

    def begin(self, entry: TensorEntry) -> Nf4Weight:
        """Start the round trip of one weight."""
        return Nf4Weight(entry.shape, self.dtype, self.device)


def round_trip_weights(base: Base) -> frozenset[str]:
    """Return the names of the weights that a training in 4 bit holds in NF4.

    Raises:
        UnsupportedModelError: the base has none, or one that cannot make the round trip.
    """
    weights = nf4_weights(base.folder)
    if lost := sorted(weights - base.shards.entries.keys()):
        raise UnsupportedModelError("round_trip.other_name", lost=lost[0], base_name=base.name)
    return weights
