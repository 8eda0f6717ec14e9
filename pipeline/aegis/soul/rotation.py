"""Makes rotations in SO(n) from skew-symmetric matrices, applies and checks them.

A rotation is a stack of blocks, (blocks, n, n): hidden_size/n blocks, 8 × 8 for so8, or one block of
hidden_size × hidden_size for dense, which is updated in place at every step (`soul.retraction`).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from aegis.soul.tf32 import allow_tf32, gram

Map = Literal["exp", "cayley"]

ORTHOGONALITY_BOUND = 1e-5
"""Largest entry of |RᵀR − I| that counts as rounding: the maps of blocks stay far below it, a dense R below half."""

_HALVINGS = 6
_SMALL_BLOCK = 16


def skew_matrix(entries: Tensor, n: int) -> Tensor:
    """Return the skew-symmetric matrices (blocks, n, n) with `entries` (blocks, n(n−1)/2) below the diagonal."""
    lower = entries.new_zeros(entries.shape[0], n, n)
    row, column = below_diagonal(lower)
    lower[:, row, column] = entries
    return lower - lower.mT


def below_diagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows and the columns of the free entries of matrices (blocks, n, n), in their order."""
    n = matrices.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=matrices.device)
    return row, column


def rotate(skew: Tensor, kind: Map) -> Tensor:
    """Map skew-symmetric matrices A (blocks, n, n) to rotations of the same shape, det +1.

    exp(A) reaches every rotation. Cayley, (I − A/2)⁻¹(I + A/2), agrees with it to second order in A, is several times
    cheaper, and cannot reach an angle of exactly π.
    """
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if kind == "exp":
        return (eye + exp_less_identity(skew.double(), _HALVINGS)).to(skew.dtype)
    # I − A/2 is never singular, so solve_ex does not check it: a check would make a GPU wait
    return torch.linalg.solve_ex(eye - skew / 2, eye + skew / 2)[0]


def exp_less_identity(skew: Tensor, halvings: int) -> Tensor:
    """Return exp(A) − I: a Taylor polynomial of degree 8 of A/2ᵏ, squared k times as (I + Z)² − I = 2Z + Z².

    The error of the polynomial is below (|A|/2ᵏ)⁹/9! · 2ᵏ: 5e-9 at k = 6 and |A| = 20, three full turns, and at k = 0
    and |A| = 0.5. `matrix_exp` reads the norms on the host to choose its degree; this makes a GPU wait, and a CUDA
    graph cannot capture it. (Scaling and squaring: Higham, chapter 10.)

    Args:
        halvings: k.
    """
    a = skew / 2**halvings
    a2 = a @ a
    a3, a4 = a2 @ a, a2 @ a2
    # in place: to read and write a large matrix once more would take a tenth of a product's time
    tail = (a / 120).add_(a2, alpha=1 / 720).add_(a3, alpha=1 / 5040).add_(a4, alpha=1 / 40320)
    tail.diagonal(dim1=-2, dim2=-1).add_(1 / 24)
    power = a.add(a2, alpha=1 / 2).add_(a3, alpha=1 / 6).baddbmm_(a4, tail)
    for _ in range(halvings):
        power = torch.baddbmm(power, power, power, beta=2)
    return power


def random_rotation(blocks: int, n: int, generator: torch.Generator) -> Tensor:
    """Draw (blocks, n, n) float32 rotations from the Haar measure on SO(n).

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q is Haar on O(n) (Mezzadri 2007,
    arXiv:math-ph/0609050); negating one column of the reflections gives SO(n).
    """
    gaussian = torch.randn(blocks, n, n, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    q = q * torch.sign(torch.diagonal(r, dim1=-2, dim2=-1)).unsqueeze(-2)
    q[:, :, 0] *= determinant_sign(q).unsqueeze(-1)
    return q.float().contiguous()


def apply_rotation(rotation: Tensor, hidden: Tensor, *, coarse: bool = False) -> Tensor:
    """Return R h for every vector of `hidden` (…, hidden_size), the row form F.linear(h, R).

    Args:
        coarse: the hidden states come from 16 bit and go back to it, so a dense R's product may be in TF32.
    """
    blocks, n, _ = rotation.shape
    if blocks == 1:
        if not coarse:
            return torch.nn.functional.linear(hidden, rotation[0])
        turned: Tensor = _CoarselyTurned.apply(hidden, rotation[0])  # type: ignore[no-untyped-call]
        return turned
    split = hidden.unflatten(-1, (blocks, n))
    return torch.einsum("...nj,nij->...ni", split, rotation).flatten(-2)


class _CoarselyTurned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, rotation)
        with allow_tf32(rotation):
            return torch.nn.functional.linear(hidden, rotation)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        hidden, rotation = ctx.saved_tensors
        with allow_tf32(rotation):
            return outer[0] @ rotation, outer[0].flatten(0, -2).mT @ hidden.flatten(0, -2)


def orthogonality_defect(rotation: Tensor) -> Tensor:
    """Return RᵀR − I, (blocks, n, n): zero for an orthogonal R; the orthogonality loss is the sum of its squares."""
    defect = gram(rotation)
    defect.diagonal(dim1=-2, dim2=-1).sub_(1)
    return defect


def determinant_sign(rotation: Tensor) -> Tensor:
    """Return the sign of each block's determinant, (blocks,): +1 a rotation, −1 a reflection.

    float32 is exact enough: all singular values of an orthogonal matrix are 1, so it is far from a singular one.
    """
    # small blocks go to the CPU: on a GPU, the library for this takes seconds to load
    place = torch.device("cpu") if rotation.shape[-1] <= _SMALL_BLOCK else rotation.device
    return torch.linalg.slogdet(rotation.to(place)).sign.to(rotation.device)
