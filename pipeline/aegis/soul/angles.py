"""Computes the angles of a rotation, one per plane that it rotates.

The eigenvalues of a rotation are pairs e^{±iθ}; θ in [0, π] is an angle. I + gR is normal, so its singular values are
the absolute values of its eigenvalues, |1 + g·e^{iθ}|: the angles and g alone define the spectrum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.soul.rotation import Map, skew_matrix

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def rotation_angles(rotation: Tensor) -> Tensor:
    """Return the angles of R, one per pair of eigenvalues, ascending in each block.

    cos θ are the eigenvalues of (R + Rᵀ)/2, each twice. Near 0 and π, the arc cosine turns R's float32 rounding of 1e-7
    into an angle of 4e-4, which is invisible in a plot.

    Args:
        rotation: R, (blocks, n, n), any float dtype.

    Returns:
        (blocks · ⌈n/2⌉,) float64 in radians, on the CPU. An odd n has a single eigenvalue 1, with the angle 0.
    """
    wide = rotation.detach().cpu().double()
    cosines = torch.linalg.eigvalsh((wide + wide.mT) / 2).flip(-1)
    return cosines[:, (wide.shape[-1] + 1) % 2 :: 2].clamp(-1, 1).acos().flatten()


def turned_angles(entries: Tensor, n: int, map_: Map) -> Tensor:
    """Return the angles of R₀ᵀR = map(A): how far R has turned from its start.

    A skew-symmetric A has eigenvalues ±iφ and singular values φ, each twice. exp maps them to e^{±iφ}, and Cayley to
    (1 + iφ/2)/(1 − iφ/2), which has the angle 2·atan(φ/2).

    Args:
        entries: A's free entries, (blocks, n(n−1)/2).
        map_: the map from A to the rotation.

    Returns:
        (blocks · ⌊n/2⌋,) float64 in radians in [0, π], on the CPU.
    """
    values = torch.linalg.svdvals(skew_matrix(entries.detach().cpu().double(), n))[:, : n - n % 2 : 2]
    angles = values if map_ == "exp" else 2 * torch.atan(values / 2)
    # a turn of more than half a circle equals a smaller one in the other direction
    return torch.atan2(angles.sin().abs(), angles.cos()).flatten()


def quantiles_in_degrees(angles: Tensor) -> list[float]:
    """Return the QUANTILES of angles given in radians, in degrees, rounded to six decimals."""
    points = torch.tensor(QUANTILES, dtype=torch.float64)
    return [round(value, 6) for value in torch.rad2deg(torch.quantile(angles, points)).tolist()]
