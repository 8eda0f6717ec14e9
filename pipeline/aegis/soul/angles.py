"""By how much a rotation turns: its eigen-angles, one for each plane that it turns in itself.

The eigenvalues of a rotation come in pairs e^{±iθ}; θ in [0, π] is an angle. I + gR is normal, so its singular values
are the absolute values of its eigenvalues, |1 + g·e^{iθ}|: the spectrum follows from the angles and g alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.soul.rotation import Map, skew_matrix

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def rotation_angles(rotation: Tensor) -> Tensor:
    """Return the angles of R, one a pair of eigenvalues, ascending in each block.

    cos θ are the eigenvalues of (R + Rᵀ)/2, each twice. Near 0 and π the arc cosine turns R's float32 rounding of 1e-7
    into 4e-4 of angle, which no picture shows.

    Args:
        rotation: R, (blocks, n, n), any float dtype.

    Returns:
        (blocks · ⌈n/2⌉,) float64 in radians, on the CPU. An odd n has an eigenvalue 1 of its own, the angle 0.
    """
    wide = rotation.detach().cpu().double()
    cosines = torch.linalg.eigvalsh((wide + wide.mT) / 2).flip(-1)
    return cosines[:, (wide.shape[-1] + 1) % 2 :: 2].clamp(-1, 1).acos().flatten()


def turned_angles(entries: Tensor, n: int, map_: Map) -> Tensor:
    """Return the angles of what was learned, R₀ᵀR = map(A): by how much R has turned from its start.

    A skew A has eigenvalues ±iφ and singular values φ, each twice; exp makes e^{±iφ} of them, and Cayley
    (1 + iφ/2)/(1 − iφ/2), the angle 2·atan(φ/2).

    Args:
        entries: A's free entries, (blocks, n(n−1)/2).

    Returns:
        (blocks · ⌊n/2⌋,) float64 in radians in [0, π], on the CPU.
    """
    values = torch.linalg.svdvals(skew_matrix(entries.detach().cpu().double(), n))[:, : n - n % 2 : 2]
    angles = values if map_ == "exp" else 2 * torch.atan(values / 2)
    # a turn of more than half a circle is a smaller one the other way
    return torch.atan2(angles.sin().abs(), angles.cos()).flatten()


def quantiles_in_degrees(angles: Tensor) -> list[float]:
    """Return QUANTILES of angles in radians, in degrees, to six digits after the point."""
    points = torch.tensor(QUANTILES, dtype=torch.float64)
    return [round(value, 6) for value in torch.rad2deg(torch.quantile(angles, points)).tolist()]
