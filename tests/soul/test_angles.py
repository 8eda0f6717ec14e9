"""Tests of angles: a rotation has the angles it was built with, and I + gR has the spectrum they give."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aegis.soul.angles import QUANTILES, quantiles_in_degrees, rotation_angles, turned_angles
from aegis.soul.rotation import Map, random_rotation, rotate, skew_matrix

ANGLES = torch.tensor([0.0, 0.4, 1.7, 3.0])


def turning(angles: Tensor, odd: bool = False) -> Tensor:
    """Return a rotation by known angles in planes that contain no axis."""
    blocks = [torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]]) for a in angles.double()]
    plain = torch.block_diag(*blocks, *([torch.ones(1, 1, dtype=torch.float64)] if odd else []))
    n = plain.shape[0]
    basis = random_rotation(1, n, torch.Generator().manual_seed(4))[0].double()
    return (basis @ plain @ basis.mT)[None]


def test_a_rotation_has_the_angles_that_it_was_built_with() -> None:
    found = rotation_angles(turning(ANGLES))
    assert torch.allclose(found, ANGLES.double(), atol=1e-3)
    twice = rotation_angles(turning(ANGLES) @ turning(ANGLES))
    assert not torch.allclose(twice, ANGLES.double(), atol=1e-2)  # the control: another rotation has others
    odd = rotation_angles(turning(ANGLES[1:], odd=True))
    assert torch.allclose(odd, ANGLES.double(), atol=1e-3)


@pytest.mark.parametrize("map_", ["exp", "cayley"])
@pytest.mark.parametrize(("blocks", "n"), [(5, 8), (1, 12), (1, 7)])
def test_the_turned_angles_of_a_are_those_of_its_rotation(map_: Map, blocks: int, n: int) -> None:
    """The angles read off the skew matrix are those of the rotation that it makes, large ones too."""
    entries = torch.randn(blocks, n * (n - 1) // 2, generator=torch.Generator().manual_seed(1))
    found = turned_angles(entries, n, map_).sort().values
    rotation = rotate(skew_matrix(entries, n).double(), map_)
    wanted = rotation_angles(rotation).sort().values
    wanted = wanted[blocks * (n % 2) :]
    assert found.max() > 2
    assert torch.allclose(found, wanted, atol=1e-5)
    other = turned_angles(entries, n, "cayley" if map_ == "exp" else "exp").sort().values
    assert not torch.allclose(other, wanted, atol=1e-2)


def test_the_spectrum_of_the_fold_follows_from_the_angles() -> None:
    """Singular values of I + gR by themselves, and |1 + g·e^{iθ}|."""
    rotation = random_rotation(3, 8, torch.Generator().manual_seed(2)).double()
    g = 0.8345
    wanted = torch.linalg.svdvals(torch.eye(8, dtype=torch.float64) + g * rotation)[:, ::2].flatten().sort().values
    found = (1 + g * torch.exp(1j * rotation_angles(rotation))).abs().sort().values
    assert torch.allclose(found, wanted, atol=1e-6)


def test_quantiles_are_in_degrees() -> None:
    found = quantiles_in_degrees(torch.linspace(0, math.pi, 101, dtype=torch.float64))
    assert found == pytest.approx([180 * q for q in QUANTILES])
