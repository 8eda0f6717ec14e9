"""NF4 as bitsandbytes stores it: codes of 4 bits, and the blocks that share a scale."""

from __future__ import annotations

BLOCK, SECOND_BLOCK = 64, 256
"""Weights that share an 8-bit absmax, and absmax values that share a float32 scale."""
