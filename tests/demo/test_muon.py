"""Tests that Muon's update is nearly orthogonal, for any shape."""

from __future__ import annotations

import pytest
import torch

from aegis.demo.muon import Muon, orthogonalized


@pytest.mark.parametrize("shape", [(64, 64), (192, 64), (64, 128)])
def test_an_update_stretches_no_direction_much_more_than_another(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 64, generator=generator)).Q for n in shape)
    spread = left @ torch.diag(torch.linspace(1, 12, 64)) @ right.T
    values = torch.linalg.svdvals(orthogonalized(spread, iterations=5))
    assert values[0] < 1.3
    assert values[-1] > 0.5
    # the control: the matrix itself is far from it
    assert torch.linalg.svdvals(spread)[-1] < 0.1 * torch.linalg.svdvals(spread)[0]


def test_an_update_keeps_the_directions() -> None:
    matrix = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(matrix)
    core = u.T @ orthogonalized(matrix) @ v.T
    assert (core - torch.diag(core.diagonal())).abs().max() < 1e-4


def test_a_step_goes_downhill_and_shrinks_the_weights() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.5)
    (weight * torch.eye(4)).sum().backward()
    optimizer.step()
    assert (weight.diagonal() < 0.95).all()
    off = weight[~torch.eye(4, dtype=torch.bool)]
    assert torch.allclose(off, torch.full_like(off, 0.95), atol=1e-4)
