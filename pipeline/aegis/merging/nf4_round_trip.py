"""Computes the NF4 round trip of a weight, slab by slab: the values that an adapter is trained on.

bitsandbytes divides the flattened weight into blocks of 64, and stores each as 4-bit codes and its largest magnitude,
absmax. Double quantization then stores absmax, minus its mean over the weight, in 8 bit (Dettmers et al. 2023,
arXiv:2305.14314, section 3). So codes can be computed slab by slab, but values only after every absmax is known: until
then codes and absmax are kept, 0.57 bytes per value.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aegis.merging.ordered_pool import Scratch
from aegis.model.nf4_format import BLOCK, SECOND_BLOCK

_PIECE = 1 << 17
"""Values per call, so that they stay in the processor's cache."""


class Nf4Weight:
    """The round trip of one weight: `quantize` every row, call `seal`, then read `rows`.

    Args:
        shape: (out_features, in_features), in_features divisible by 64, so that rows consist of whole blocks.
            (bitsandbytes' AVX512 kernel also reads the wrong absmax for any other weight.)
        dtype: training's compute dtype; values are cast to it before, and come back in it.
        device: where bitsandbytes quantizes. Its kernels on a GPU and on a CPU may differ in the last digit.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._columns = shape[1]
        self._threads = torch.get_num_threads()
        assert self._columns % BLOCK == 0, shape
        self._codes = torch.empty(math.prod(shape) // 2, dtype=torch.uint8, device=device)
        self._absmax = torch.empty(math.prod(shape) // BLOCK, dtype=torch.float32, device=device)

    def quantize(self, start: int, rows: Tensor, scratch: Scratch) -> None:
        """Quantize rows, the first of which is row `start`; in any order and from any thread.

        Args:
            scratch: the thread's memory for intermediate values.
        """
        values, first = rows.reshape(-1), start * self._columns
        for at in range(0, len(values), _PIECE):
            part = values[at : at + _PIECE]
            if not (self.device.type == "cpu" and self.dtype == torch.float32):
                part = part.to(self.device, self.dtype)
            codes = self._codes[(first + at) // 2 :][: len(part) // 2]
            absmax = self._absmax[(first + at) // BLOCK :][: len(part) // BLOCK]
            _quantize(part, codes, absmax, scratch)

    def seal(self) -> None:
        """Quantize the absmax after all rows, as bitsandbytes' quantize_4bit does at its end; from any thread.

        torch splits a sum by its number of threads, and the worker threads have only one. So the mean is computed with
        the number of the thread that created this weight.
        """
        from bitsandbytes import functional

        own = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            offset = self._absmax.mean()
        finally:
            torch.set_num_threads(own)
        codes, state = functional.quantize_blockwise(self._absmax - offset, blocksize=SECOND_BLOCK)
        self._absmax = functional.dequantize_blockwise(codes, state).add_(offset)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows [start, stop) of the round trip, on the CPU, in `dtype`."""
        from bitsandbytes import functional

        first, end = start * self._columns, stop * self._columns
        absmax, shape = self._absmax[first // BLOCK : end // BLOCK], torch.Size((stop - start, self._columns))
        state = functional.QuantState(absmax, shape, _code(self.device), BLOCK, "nf4", self.dtype)
        rows: Tensor = functional.dequantize_4bit(self._codes[first // 2 : end // 2].unsqueeze(1), state)
        return rows.cpu()


def _quantize(values: Tensor, codes: Tensor, absmax: Tensor, scratch: Scratch) -> None:
    """Compute the codes, two per byte, and the absmax of flat values that begin at the start of a block.

    On a CPU, bitsandbytes finds a code by binary search among the 15 bounds between codes, some 35 million per second;
    counting the bounds below a value gives the same code in less than a tenth of the time.
    """
    from bitsandbytes import functional

    if values.device.type != "cpu":
        found, state = functional.quantize_4bit(values, blocksize=BLOCK, quant_type="nf4")
        codes.copy_(found.reshape(-1))
        absmax.copy_(state.absmax)
        return
    shape = (len(absmax), BLOCK)
    blocks = scratch.tensor("wide", shape, torch.float32).copy_(values.view(shape))
    torch.amax(torch.abs(blocks, out=scratch.tensor("magnitude", shape, torch.float32)), -1, out=absmax)
    scaled = blocks.mul_(absmax.clamp(min=1e-38).reciprocal_().unsqueeze(-1)).numpy()
    counted = scratch.tensor("codes", shape, torch.uint8).zero_().numpy()
    above = scratch.tensor("above", shape, torch.bool).numpy()
    for bound in _bounds():
        np.greater(scaled, bound, out=above)
        np.add(counted, above.view(np.uint8), out=counted)
    pairs = counted.reshape(-1).view("<u2")
    # the first of two codes is in the lower byte; the product moves it in front of the other one
    np.multiply(pairs, 0x1001, out=pairs)
    np.right_shift(pairs, 8, out=pairs)
    np.copyto(codes.numpy(), pairs, casting="unsafe")


@functools.cache
def _code(device: torch.device) -> Tensor:
    from bitsandbytes import functional

    code: Tensor = functional.get_4bit_type("nf4", device=device)
    return code


@functools.cache
def _bounds() -> NDArray[np.float32]:
    code = _code(torch.device("cpu"))
    bounds: NDArray[np.float32] = ((code[:-1] + code[1:]) / 2).numpy()
    return bounds
