"""Tests of dropout by hash: its rate, independent seeds and neighbours, and the same mask when repeated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aegis.training.kernels.dropout import DropoutRate, drop

CPU = torch.device("cpu")


def seed(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


def kept(value: int, rate: float, shape: tuple[int, int] = (512, 1024)) -> Tensor:
    how = DropoutRate(rate, CPU)
    return drop(torch.ones(shape), seed(value), how.threshold, how.amplify) > 0


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_the_dropout_rate_is_kept(rate: float) -> None:
    """Within five standard deviations in the tensor, every column and every row; the mean of the kept values is 1."""
    mask = kept(3, rate).float()
    deviation = (rate * (1 - rate)) ** 0.5
    for means, count in ((mask.mean(), mask.numel()), (mask.mean(0), 512), (mask.mean(1), 1024)):
        assert ((means - (1 - rate)).abs() < 5 * deviation / count**0.5).all()
    how = DropoutRate(rate, CPU)
    values = drop(torch.ones(512, 1024), seed(3), how.threshold, how.amplify)
    assert values.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("other", [4, -(2**31), 2**31 - 1, 3 ^ 1, 3 ^ (1 << 30)])
def test_another_seed_gives_another_mask(other: int) -> None:
    """Two masks agree as often as independent ones would; a mask agrees with itself, and not one place further."""
    one, two = kept(3, 0.5), kept(other, 0.5)
    assert (one == two).float().mean().item() == pytest.approx(0.5, abs=0.005)
    assert torch.equal(one, kept(3, 0.5))
    shifted = one.flatten().roll(1).view_as(one)
    assert (one == shifted).float().mean().item() == pytest.approx(0.5, abs=0.005)


def test_dropout_that_is_switched_off_changes_no_value() -> None:
    how = DropoutRate(0.5, CPU)
    values = torch.randn(64, 64)
    how.switch(on=False)
    assert torch.equal(drop(values, seed(1), how.threshold, how.amplify), values)
    how.switch(on=True)
    assert not torch.equal(drop(values, seed(1), how.threshold, how.amplify), values)


def test_half_precision_stays_half_precision() -> None:
    how = DropoutRate(0.25, CPU)
    values = drop(torch.ones(64, 64, dtype=torch.bfloat16), seed(1), how.threshold, how.amplify)
    assert values.dtype == torch.bfloat16
    assert set(values.unique().tolist()) == {0.0, torch.tensor(4 / 3).bfloat16().item()}
