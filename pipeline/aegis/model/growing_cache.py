"""A static cache whose attention reads only the part that is filled, in steps.

Its memory keeps its place, so a step can be recorded as a CUDA graph; but a step that reads all of it reads mostly
zeros while a text is short. A text of n tokens has its attention read about n/2 on average, and half a step more.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

STEP = 128
"""Tokens by which the part that is read grows; a recorded step is recorded anew for each."""


class GrowingCache(StaticCache):  # type: ignore[misc]
    """A static cache of `length` tokens per layer, of which layers without a sliding window show only a part.

    A sliding window that is not shorter than `length` is no window.

    Attributes:
        shown: the number of tokens that attention reads.
    """

    def __init__(self, config: Any, length: int) -> None:
        super().__init__(config=config, max_cache_len=length)
        self.layers: list[Any]
        self.shown, self._length = 0, length
        window = getattr(config.get_text_config(), "sliding_window", None)
        # transformers counts the tokens of a sliding layer on the host, which a recorded step would not do
        slides = window is not None and window < length
        self.layers = [
            _GrowingLayer(length) if type(layer) is StaticLayer or (layer.is_sliding and not slides) else layer
            for layer in self.layers
        ]

    def show(self, filled: int) -> bool:
        """Let attention read the first `filled` tokens, and at most STEP more; return whether this is a new part."""
        shown = min(-(-filled // STEP) * STEP, self._length)
        if shown == self.shown:
            return False
        self.shown = shown
        for layer in self.layers:
            if isinstance(layer, _GrowingLayer):
                layer.shown = shown
        return True


class _GrowingLayer(StaticLayer):  # type: ignore[misc]
    """Keys and values of one layer, each (texts, heads, tokens, width), of which the first `shown` tokens are read."""

    shown = 0

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = super().update(*args, **kwargs)
        return keys[:, :, : self.shown], values[:, :, : self.shown]

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        _, offset = super().get_mask_sizes(*args, **kwargs)
        return self.shown, offset
