"""Dropout whose mask is a pure function of a seed and the value's index, so that no state has to be saved.

Activation recomputation, a captured CUDA graph and a resumed run all get the same mask from one integer on the device.
The mask is a 32-bit hash of the index: a multiply and the finalizer of MurmurHash3 (Appleby 2011, public domain), in
which every output bit depends on every input bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

# the constants as signed int32; int32 arithmetic wraps in eager torch and in compiled kernels alike
_GOLDEN = 0x9E3779B1 - 2**32
_MIX_1 = 0x85EBCA6B - 2**32
_MIX_2 = 0xC2B2AE35 - 2**32
_KEEP_ALL = -(2**31)


class DropoutRate:
    """A dropout rate as tensors on the device: switching it off needs no new compilation and no new CUDA graph.

    Attributes:
        threshold: scalar int32; a value is kept if its hash is not below it.
        amplify: scalar float32, 1 / (1 − rate) while dropout is on, else 1.
    """

    def __init__(self, rate: float, device: torch.device) -> None:
        self.rate = rate
        self.threshold = torch.empty((), dtype=torch.int32, device=device)
        self.amplify = torch.empty((), device=device)
        self.switch(on=True)

    def switch(self, *, on: bool) -> None:
        """Switch dropout on, at the rate, or off."""
        rate = self.rate if on else 0.0
        self.threshold.fill_(_KEEP_ALL + round(rate * 2**32))
        self.amplify.fill_(1 / (1 - rate))

    def end(self) -> None:
        """Switch dropout off for good."""
        self.rate = 0.0
        self.switch(on=False)


def drop(values: Tensor, seed: Tensor, threshold: Tensor, amplify: Tensor) -> Tensor:
    """Zero the values whose hash is below the threshold, and amplify the others.

    Args:
        values: fewer than 2³¹ values of any float dtype.
        seed: scalar int32.
        threshold, amplify: the tensors of a `DropoutRate`.

    Returns:
        The new values, with the shape and dtype of `values`.
    """
    index = torch.arange(values.numel(), dtype=torch.int32, device=values.device).view(values.shape)
    x = (index ^ seed) * _GOLDEN  # xor first: the compiler would fold index · constant into an index beyond int32
    x = (x ^ ((x >> 16) & 0xFFFF)) * _MIX_1
    x = (x ^ ((x >> 13) & 0x7FFFF)) * _MIX_2
    x = x ^ ((x >> 16) & 0xFFFF)
    return torch.where(x >= threshold, values * amplify, 0.0).to(values.dtype)
