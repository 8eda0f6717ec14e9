"""Tests that the NF4 round trip in slabs equals bitsandbytes' round trip of the complete weight, bit for bit."""

from __future__ import annotations

import threading

import pytest
import torch
from bitsandbytes import functional
from torch import Tensor

from aegis.merging.nf4_round_trip import Nf4Weight
from aegis.merging.ordered_pool import Scratch
from aegis.model.nf4_format import BLOCK

CPU = torch.device("cpu")


def by_bitsandbytes(weight: Tensor, dtype: torch.dtype) -> Tensor:
    codes, state = functional.quantize_4bit(weight.to(dtype), quant_type="nf4", compress_statistics=True)
    return functional.dequantize_4bit(codes, state)


def in_slabs(weight: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    trip, scratch = Nf4Weight(tuple(weight.shape), dtype, CPU), Scratch()
    starts = range(0, len(weight), rows)
    for start in reversed(starts):
        trip.quantize(start, weight[start : start + rows], scratch)
    trip.seal()
    return torch.cat([trip.rows(start, min(start + rows, len(weight))) for start in starts])


def bits(values: Tensor) -> Tensor:
    return values.view(torch.int16 if values.dtype.itemsize == 2 else torch.int32)


def random_weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(5)) * 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("shape", "rows"), [((512, 1024), 7), ((37, 192), 2), ((5, 64), 5)])
def test_slabs_give_the_round_trip_of_the_complete_weight_bit_for_bit(
    shape: tuple[int, int], rows: int, stored: torch.dtype, dtype: torch.dtype
) -> None:
    """In any order of slabs, from any stored dtype, held in any; zeros, blocks of zeros and signed zeros among them."""
    weight = random_weight(*shape).to(stored)
    weight[1, :BLOCK] = 0
    weight[2, :3] = torch.tensor([0.0, -0.0, 1e-30])
    expected = by_bitsandbytes(weight, dtype)
    assert torch.equal(bits(expected), bits(in_slabs(weight, dtype, rows)))
    assert not torch.equal(expected, weight.to(dtype))


def test_a_value_between_two_codes_gets_bitsandbytes_code() -> None:
    """On each of the 15 bounds, and one step of float32 to either side of it."""
    code = functional.get_4bit_type("nf4", device="cpu")
    bounds = (code[:-1] + code[1:]) / 2
    around = torch.cat([bounds, torch.nextafter(bounds, code[1:]), torch.nextafter(bounds, code[:-1])])
    weight = torch.ones(2, BLOCK)
    weight[:, : len(around)] = torch.stack([around, around * 0.37])
    weight[1, -1] = 0.37
    assert torch.equal(bits(by_bitsandbytes(weight, torch.float32)), bits(in_slabs(weight, torch.float32, 1)))


def test_slabs_with_their_own_mean_miss_the_round_trip_of_the_complete_weight() -> None:
    """The control: with the second quantization done slab by slab the result differs."""
    weight = random_weight(512, 1024)
    apart = torch.cat([by_bitsandbytes(scratch, torch.float32) for scratch in weight.split(7)])
    assert not torch.equal(apart, by_bitsandbytes(weight, torch.float32))


def test_the_mean_is_computed_with_the_first_threads_number_of_threads() -> None:
    """Above 32,768 absmax values torch adds up in as many parts as it has threads; here a thread with one seals."""
    given = torch.get_num_threads()
    differs = False
    try:
        for seed in range(4):
            weight = torch.randn(1024, 4096, generator=torch.Generator().manual_seed(seed))
            expected = {}
            for threads in (1, 2):
                torch.set_num_threads(threads)
                expected[threads] = by_bitsandbytes(weight, torch.float32)
            differs |= not torch.equal(expected[1], expected[2])
            trip = Nf4Weight(tuple(weight.shape), torch.float32, CPU)
            trip.quantize(0, weight, Scratch())
            sealed_with: list[int] = []

            def seal(trip: Nf4Weight = trip, sealed_with: list[int] = sealed_with) -> None:
                torch.set_num_threads(1)
                trip.seal()
                sealed_with.append(torch.get_num_threads())

            thread = threading.Thread(target=seal)
            thread.start()
            thread.join()
            assert sealed_with == [1]
            assert torch.equal(trip.rows(0, len(weight)), expected[2])
        assert differs
    finally:
        torch.set_num_threads(given)
