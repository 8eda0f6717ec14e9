"""Counts the lengths of chats, and the tokens that a window cuts off."""

from __future__ import annotations

import math
from array import array

import numpy as np

from aegis.data.example import Example


class Lengths:
    """The lengths of chats in tokens, four bytes each. A document is never cut off, so it does not count.

    Args:
        max_length: tokens per window.
    """

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._lengths = array("I")
        self.too_long = 0
        """Number of chats longer than a window."""
        self.cut_tokens = 0
        """Number of their tokens after the end of the window."""

    def count(self, example: Example) -> None:
        """Count one row."""
        if example.is_document:
            return
        length = len(example.ids)
        self._lengths.append(length)
        self.too_long += length > self._max_length
        self.cut_tokens += max(0, length - self._max_length)

    def fitting(self, share: float) -> int:
        """Return the smallest window length that holds this fraction of the chats completely; 0 without chats."""
        if not self._lengths:
            return 0
        lengths = np.sort(np.frombuffer(self._lengths, np.uint32))
        return int(lengths[math.ceil(share * len(lengths)) - 1])
