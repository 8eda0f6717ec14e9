"""Rotations in SO(n), made from skew-symmetric matrices.

A rotation is held as a stack of blocks, (blocks, n, n): the so8 kind is hidden_size/8 blocks of 8 × 8, the
dense kind one block of hidden_size × hidden_size. Both are then the same mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from aegis.errors import UsageError

Kind = Literal["so8", "dense"]
Map = Literal["exp", "cayley"]

BLOCK = 8
ORTHOGONALITY_BOUND = 1e-5
"""Largest entry of |RᵀR − I| that counts as rounding; float32 maps stay two orders below it."""

_SQUARINGS = 6


def block_shape(kind: Kind, hidden_size: int) -> tuple[int, int]:
    """Return (blocks, n) for a hidden size.

    Raises:
        UsageError: so8 and `hidden_size` is not a multiple of 8.
    """
    if kind == "dense":
        return 1, hidden_size
    if hidden_size % BLOCK:
        raise UsageError("soul.not_divisible", block=BLOCK, hidden_size=hidden_size)
    return hidden_size // BLOCK, BLOCK


def skew_matrix(entries: Tensor, n: int) -> Tensor:
    """Return the skew-symmetric matrices (blocks, n, n) with `entries` (blocks, n(n−1)/2) below the diagonal."""
    row, column = torch.tril_indices(n, n, -1, device=entries.device)
    lower = entries.new_zeros(entries.shape[0], n, n)
    lower[:, row, column] = entries
    return lower - lower.mT


def rotate(skew: Tensor, kind: Map, start: Tensor | None = None) -> Tensor:
    """Map skew-symmetric matrices A (blocks, n, n) to rotations R₀ · map(A) of the same shape, det that of R₀.

    exp(A) reaches every rotation; Cayley, (I − A/2)⁻¹(I + A/2), agrees with it to second order in A, is several
    times cheaper and cannot reach an angle of exactly π.

    Args:
        start: R₀, (blocks, n, n) rotations without gradients; the identity if None.
    """
    if start is None:
        start = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device).expand_as(skew)
    if kind == "exp":
        return start @ (_exp_of_blocks(skew) if skew.shape[-1] == BLOCK else torch.linalg.matrix_exp(skew))
    rotation: Tensor = _Cayley.apply(skew, start)  # type: ignore[no-untyped-call]
    return rotation


class _Cayley(torch.autograd.Function):
    """R = R₀(I − A/2)⁻¹(I + A/2) = R₀ + Y A with Y = R₀ X and X = (I − A/2)⁻¹, so dR = Y dA X.

    Its gradient is Yᵀ G Xᵀ, and Xᵀ = Yᵀ R₀, since R₀ is orthogonal: Y is kept, and three products give what a solver's
    own backward pass would factorize again for. 2Y − R₀ would be a product less, but a GPU's X is 2e-5 off beside 1
    where A is small (many tiny numbers are subtracted from 1 on the way), and beside A that is little.
    """

    @staticmethod
    def forward(ctx: Any, skew: Tensor, start: Tensor) -> Tensor:
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        turned = _divide(start, eye - skew / 2)
        ctx.save_for_backward(turned, start)
        return torch.baddbmm(start, turned, skew)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        turned, start = ctx.saved_tensors
        with coarse_products(turned):
            return (turned.mT @ outer[0]) @ (turned.mT @ start), None


def _divide(start: Tensor, matrix: Tensor) -> Tensor:
    """start · matrix⁻¹ of I plus a skew matrix. It is never singular, so nothing asks whether it is: a GPU would wait.

    Nor does it need pivots, since its leading blocks and what is left of them in the elimination are I plus a skew
    matrix plus, at most, something positive: no pivot is below 1. On a GPU looking for them takes most of the time
    (3,072 rows on an H100: 8.3 of 11.6 ms).
    """
    if not matrix.is_cuda:
        return torch.linalg.solve_ex(matrix, start, left=False)[0]
    factors = torch.linalg.lu_factor_ex(matrix, pivot=False)[0]
    upper = torch.linalg.solve_triangular(factors, start, upper=True, left=False)
    return torch.linalg.solve_triangular(factors, upper, upper=False, left=False, unitriangular=True)


@contextmanager
def coarse_products(matrices: Tensor) -> Iterator[None]:
    """Let a GPU's tensor cores make float32 products of large matrices, of factors rounded to 10 bits (TF32).

    For what meets bfloat16's 8 bits anyway: gradients that come from there, and hidden states that go back to it. What
    R is, and how orthogonal, is always worked out in whole float32.
    """
    if not matrices.is_cuda or matrices.shape[-1] <= BLOCK:
        yield
        return
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before


def _exp_of_blocks(skew: Tensor) -> Tensor:
    """exp(A) of small blocks: a Taylor polynomial of degree 8 of A/2⁶, squared six times, in float64.

    The error of the polynomial is below (|A|/2⁶)⁹/9! · 2⁶, 5e-9 at |A| = 20, three full turns. `matrix_exp` would look
    at the norms from the host to choose its degree, which makes a GPU wait and cannot be captured in a CUDA graph.
    (Scaling and squaring: Higham, Functions of Matrices, 2008, chapter 10.)
    """
    a = skew.double() / 2**_SQUARINGS
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    a2 = a @ a
    a3, a4 = a2 @ a, a2 @ a2
    power = eye + a + a2 / 2 + a3 / 6 + a4 @ (eye / 24 + a / 120 + a2 / 720 + a3 / 5040 + a4 / 40320)
    for _ in range(_SQUARINGS):
        power = power @ power
    return power.to(skew.dtype)


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
        coarse: the hidden states come from 16 bit and go back to it, and a dense R need not be more exact than they
            are (`coarse_products`).
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
        with coarse_products(rotation):
            return torch.nn.functional.linear(hidden, rotation)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        hidden, rotation = ctx.saved_tensors
        with coarse_products(rotation):
            return outer[0] @ rotation, outer[0].flatten(0, -2).mT @ hidden.flatten(0, -2)


def orthogonality_defect(rotation: Tensor) -> Tensor:
    """Return RᵀR − I, (blocks, n, n): zero for an orthogonal R, and what the orthogonality loss squares."""
    eye = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device)
    return rotation.mT @ rotation - eye


def determinant_sign(rotation: Tensor) -> Tensor:
    """Return the sign of each block's determinant, (blocks,): +1 a rotation, −1 a reflection."""
    return torch.linalg.slogdet(rotation.double()).sign.to(rotation.dtype)
