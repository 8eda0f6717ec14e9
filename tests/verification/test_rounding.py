"""Tests of the bounds on rounding: rounding alone stays below them, and a larger error exceeds them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from aegis.verification.divergence import Recording, compare
from aegis.verification.findings import Divergence
from aegis.verification.rounding import MIN_POSITIONS, rounding_bounds

VOCABULARY, WIDTH, LAYERS = 400, 96, 6


def recorded(logits: NDArray[np.float32]) -> Recording:
    return Recording(logits, np.full(len(logits), -1))


class Network:
    """A small residual network, so that errors of a layer go through the next ones."""

    def __init__(self, scale: float) -> None:
        draw = torch.Generator().manual_seed(4)
        self.layers = [torch.randn(WIDTH, WIDTH, generator=draw) / WIDTH**0.5 for _ in range(LAYERS)]
        self.head = torch.randn(VOCABULARY, WIDTH, generator=draw) * scale / WIDTH**0.5

    def logits(self, inputs: torch.Tensor, dtype: torch.dtype, factor: float = 1.0) -> NDArray[np.float32]:
        """Return the output with weights and activations rounded to a dtype; `factor` scales the first layer."""

        def rounded(values: torch.Tensor) -> torch.Tensor:
            return values.to(dtype).float()

        hidden = inputs
        for number, weight in enumerate(self.layers):
            weight = weight * (factor if number == 0 else 1.0)
            hidden = hidden + rounded(torch.tanh(rounded(hidden) @ rounded(weight).T))
        out: NDArray[np.float32] = (rounded(hidden) @ rounded(self.head).T).numpy()
        return out


def compared(positions: int, dtype: torch.dtype, scale: float, factor: float = 1.0) -> Divergence:
    network = Network(scale)
    inputs = torch.randn(positions, WIDTH, generator=torch.Generator().manual_seed(positions))
    before, after = network.logits(inputs, torch.float32), network.logits(inputs, dtype, factor)
    return compare(recorded(before), recorded(after))


@pytest.mark.parametrize("scale", [0.2, 3.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positions", [64, 1024])
def test_rounding_stays_under_its_bounds_whatever_the_scale(dtype: torch.dtype, scale: float, positions: int) -> None:
    found = compared(positions, dtype, scale)
    assert rounding_bounds(found, dtype, LAYERS).broken(found) == []
    assert found.mean_kl > 0


@pytest.mark.parametrize("scale", [3.0, 20.0])
def test_a_weight_that_is_off_by_three_hundredths_exceeds_the_bounds(scale: float) -> None:
    """The control: one layer of six by three parts in a hundred is more than float16's rounding."""
    found = compared(1024, torch.float16, scale, 1.03)
    assert rounding_bounds(found, torch.float16, LAYERS).broken(found)


def test_a_flip_counts_only_where_the_lead_was_larger_than_rounding() -> None:
    """One near-tie of 64 tokens that falls to the other side is no fault; the same flip over a clear lead is one."""
    before = np.random.default_rng(3).normal(0, 1, (64, VOCABULARY)).astype(np.float32)
    before[:, 7] = 8.0
    before[20, 9] = 8.0 - 1e-4
    near = before.copy()
    near[20, 9] += 2e-4
    clear = before.copy()
    clear[30, 9] = 8.5
    for after, broken in ((near, False), (clear, True)):
        found = compare(recorded(before), recorded(after))
        assert found.top1 == 63 / 64
        assert ("flip_lead" in rounding_bounds(found, torch.float16, 1).broken(found)) is broken


def test_too_few_positions_give_no_bounds() -> None:
    far = Divergence(5.0, 5.0, 5.0, 0.0, 9.0, MIN_POSITIONS - 1, 1.0, 9.0)
    assert rounding_bounds(far, torch.float16, 1).broken(far) == []
