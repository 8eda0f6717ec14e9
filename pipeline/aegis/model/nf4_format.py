"""The block sizes of NF4 as bitsandbytes stores it."""

from __future__ import annotations

BLOCK, SECOND_BLOCK = 64, 256
"""Weights that share an 8-bit absmax, and absmax values that share a float32 scale."""
