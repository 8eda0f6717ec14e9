"""A rotation that is carried from step to step: its gradient, and the turn that an optimizer's step gives it.

Of a dense soul. To map all it has learned anew at every step would take an inverse of hidden_size rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.soul.rotation import below_diagonal, exp_less_identity, skew_matrix
from aegis.soul.tf32 import allow_tf32, rounded_to_tf32

LARGEST_TURN, MEAN_TURN = 0.5, 0.05
"""Radians by which one step turns any plane, about, and all of them in the quadratic mean."""
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
    """d(R · exp(A)) = R dA at A = 0, so A's gradient is RᵀG, and what moves A_ij moves A_ji the other way."""

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
    """Return R · exp(A), drawn back to SO(n) from where rounding had led R.

    R(I − Δ/2) is R's nearest rotation to first order in its defect Δ = RᵀR − I (Newton's iteration for the polar
    decomposition: Higham, Functions of Matrices, 2008, section 8.3), so what a step's rounding brings in, the next
    one takes out. On a GPU the products are coarse (`coarse_products`), but for R itself, which is added to: where A
    is small, so is the error. A longer step than LARGEST_TURN and MEAN_TURN allow is shortened, since beyond them the
    error would be more than rounding; at 3,072 rows they begin at four times the usual learning rate.

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
    """A, shortened if it must be, and rounded as its products will round it.

    A² must be the square of the A that it is added to, or their sum is no part of a rotation. (An optimizer's first
    step has entries of one size, which would all be rounded the same way.)
    """
    mean = skew.norm() / skew.shape[-1] ** 0.5
    times = torch.maximum(_largest_angle(skew) / LARGEST_TURN, mean / MEAN_TURN)
    return rounded_to_tf32(skew / times.clamp(min=1))


def _largest_angle(skew: Tensor) -> Tensor:
    """The largest singular value of A, by power iteration: from below, within a few per cent where one stands out."""
    vector = torch.arange(skew.shape[-1], dtype=skew.dtype, device=skew.device).cos()
    length = vector.norm()
    for _ in range(_POWER_ITERATIONS):
        vector = skew[0] @ (vector / length.clamp(min=torch.finfo(skew.dtype).tiny))
        length = vector.norm()
    return length
