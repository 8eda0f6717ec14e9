"""The gradient and the retraction of a dense soul's rotation, which is updated in place from step to step.

To compute the rotation at every step from one skew-symmetric matrix would take an inverse of hidden_size rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.soul.rotation import below_diagonal, exp_less_identity, skew_matrix
from aegis.soul.tf32 import allow_tf32, rounded_to_tf32

LARGEST_TURN, MEAN_TURN = 0.5, 0.05
"""Approximate maximum turn of a plane in one step, and of all planes in the quadratic mean, in radians."""
_POWER_ITERATIONS = 6


def trivialized(rotation: Tensor, entries: Tensor) -> Tensor:
    """Return R · exp(A) at A = 0, which is R, with its gradient for A's free entries.

    Args:
        rotation: R, (1, n, n).
        entries: (1, n(n−1)/2), all zero.
    """
    turned: Tensor = _Trivialized.apply(entries, rotation)  # type: ignore[no-untyped-call]
    return turned


class _Trivialized(torch.autograd.Function):
    """d(R · exp(A)) = R dA at A = 0, so A's gradient is RᵀG; A_ji = −A_ij gives the difference below."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return rotation.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        with allow_tf32(rotation):
            pulled_back = rotation.mT @ outer[0]
        row, column = below_diagonal(rotation)
        return (pulled_back - pulled_back.mT)[:, row, column], None


def retract(rotation: Tensor, entries: Tensor, defect: Tensor) -> Tensor:
    """Return R · exp(A), moved back to SO(n) from where rounding had moved R.

    R(I − Δ/2) is the rotation nearest to R, to first order in its defect Δ = RᵀR − I (Newton's iteration for the polar
    decomposition: Higham, Functions of Matrices, 2008, section 8.3). So each step removes the rounding error of the
    previous one. On a GPU the products are in TF32 (`allow_tf32`), but they are added to R in float32: if A is small,
    so is the error. A step beyond LARGEST_TURN or MEAN_TURN is shortened, because its error would be larger than
    rounding; at 3,072 rows this begins at four times the usual learning rate.

    Args:
        rotation: R, (1, n, n) float32.
        entries: A's free entries, (1, n(n−1)/2).
        defect: `orthogonality_defect` of R.
    """
    skew = _one_step(skew_matrix(entries, rotation.shape[-1]))
    with allow_tf32(rotation):
        step = exp_less_identity(skew, 0).sub_(defect, alpha=0.5)
        return torch.baddbmm(rotation, rotation, step)


def _one_step(skew: Tensor) -> Tensor:
    """Return A, shortened if necessary, and rounded to TF32 as its products would round it.

    A² must be the square of the same A that it is added to; otherwise their sum does not give a rotation. (In an
    optimizer's first step all entries have one size, and all would be rounded in the same direction.)
    """
    mean = skew.norm() / skew.shape[-1] ** 0.5
    times = torch.maximum(_largest_angle(skew) / LARGEST_TURN, mean / MEAN_TURN)
    return rounded_to_tf32(skew / times.clamp(min=1))


def _largest_angle(skew: Tensor) -> Tensor:
    """Estimate A's largest singular value by power iteration: from below, within a few per cent if it is isolated."""
    vector = torch.arange(skew.shape[-1], dtype=skew.dtype, device=skew.device).cos()
    length = vector.norm()
    for _ in range(_POWER_ITERATIONS):
        vector = skew[0] @ (vector / length.clamp(min=torch.finfo(skew.dtype).tiny))
        length = vector.norm()
    return length
