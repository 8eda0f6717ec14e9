"""Tests of the allocations counted on the meta device: every storage once, while it lives."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from aegis.training.planning.allocation_tracker import AllocationTracker, FourBitProduct, emulating_cuda

META = torch.device("meta")
MIB = 1 << 20


def wide(mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB // 4, device=META)


def test_the_peak_is_the_largest_number_of_bytes_that_live_at_once() -> None:
    """Three tensors, two of them at a time; views and changes in place cost nothing."""
    with AllocationTracker([]) as tracker:
        one = wide(1)
        view = one[: MIB // 8].view(-1, 2)
        view.add_(1)
        assert (tracker.live, tracker.peak) == (MIB, MIB)
        two = wide(2)
        del one
        assert tracker.live == 3 * MIB  # the view holds it
        del view
        assert tracker.live == 2 * MIB
        three = wide(1)
        assert (tracker.live, tracker.peak) == (3 * MIB, 3 * MIB)
        del two, three
    assert (tracker.live, tracker.peak) == (0, 3 * MIB)


def test_tensors_that_existed_before_cost_nothing() -> None:
    known = wide(1)
    with AllocationTracker([known]) as tracker:
        other = known.view(2, -1).T
        assert tracker.peak == 0
        del other
        assert wide(1).nbytes == tracker.peak


def test_small_tensors_take_a_block_of_the_allocator() -> None:
    with AllocationTracker([]) as tracker:
        kept = [torch.empty(1, device=META), torch.empty(129, device=META)]
    assert tracker.peak == 512 + 1024
    del kept


def test_a_part_is_also_counted_separately() -> None:
    with AllocationTracker([]) as tracker:
        outside = wide(1)
        with tracker.part():
            inside = wide(2)
    assert (tracker.peak, tracker.part_at_peak) == (3 * MIB, 2 * MIB)
    del outside, inside


def test_allocations_of_a_backward_pass_are_counted() -> None:
    """A linear layer of a megabyte: the gradient of its output beside the two that it becomes."""
    layer = nn.Linear(512, 512, bias=False, device=META)
    x = torch.empty(512, 512, device=META, requires_grad=True)
    with AllocationTracker([layer.weight, x]) as tracker:
        layer(x).square().sum().backward()
    assert tracker.live == 2 * MIB
    assert 3 * MIB <= tracker.peak < 5 * MIB


def test_dropout_keeps_bytes_and_attention_keeps_no_scores() -> None:
    """As CUDA's kernels; the meta device's own would keep float32 noise, and scores of tokens × tokens."""
    x = torch.empty(1, 4, 4096, 64, device=META, requires_grad=True)  # 4 MiB
    plain = AllocationTracker([x])
    with plain:
        kept = functional.dropout(x, 0.5), functional.scaled_dot_product_attention(x, x, x)
        del kept
    before = functional.dropout, functional.scaled_dot_product_attention
    with AllocationTracker([x]) as tracker, emulating_cuda():
        dropped = functional.dropout(x, 0.5)
        assert tracker.live == 4 * MIB + MIB  # the result, a byte a number
        attended = functional.scaled_dot_product_attention(x, x, x)
        assert tracker.live == 9 * MIB + 4 * 4096 * 4  # and a float32 a row
        assert functional.dropout(x, 0.5, training=False) is x
    assert (functional.dropout, functional.scaled_dot_product_attention) == before
    assert plain.peak > 10 * tracker.peak
    del dropped, attended


def test_a_four_bit_product_dequantizes_and_releases_the_weight() -> None:
    packed = torch.empty(MIB, dtype=torch.uint8, device=META)
    x = torch.empty(16, 1024, device=META, requires_grad=True)
    with AllocationTracker([packed, x]) as tracker:
        y = FourBitProduct.apply(x, packed, 2048, 1024)
        assert (tuple(y.shape), tracker.live, tracker.peak) == ((16, 2048), 16 * 2048 * 4, 8 * MIB + 16 * 2048 * 4)
        y.sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
