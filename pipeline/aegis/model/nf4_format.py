"""The block sizes of NF4 as bitsandbytes stores it, and where a layer has its scales."""

from __future__ import annotations

from typing import Any

BLOCK, SECOND_BLOCK = 64, 256
"""Weights that share an 8-bit absmax, and absmax values that share a float32 scale."""


def quant_state_of(layer: Any) -> Any:
    """Return a layer's scales, or None: they are at its weight, or at the layer alone if its weight is sharded."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state
