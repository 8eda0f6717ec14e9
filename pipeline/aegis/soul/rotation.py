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

LARGEST_TURN, MEAN_TURN = 0.5, 0.1
"""Radians by which one step of a dense rotation turns any plane, about, and all of them in the quadratic mean."""
_HALVINGS = 6
_POWER_ITERATIONS = 6
_GRAM_PARTS = 8
_BITS_LESS = 13
"""Of a float32's bits, those that TF32 leaves out."""


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
    lower = entries.new_zeros(entries.shape[0], n, n)
    row, column = _below_diagonal(lower)
    lower[:, row, column] = entries
    return lower - lower.mT


def _below_diagonal(matrices: Tensor) -> tuple[Tensor, Tensor]:
    n = matrices.shape[-1]
    row, column = torch.tril_indices(n, n, -1, device=matrices.device)
    return row, column


def rotate(skew: Tensor, kind: Map) -> Tensor:
    """Map skew-symmetric matrices A (blocks, n, n) to rotations of the same shape, det +1.

    exp(A) reaches every rotation; Cayley, (I − A/2)⁻¹(I + A/2), agrees with it to second order in A, is several
    times cheaper and cannot reach an angle of exactly π.
    """
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    if kind == "exp":
        return (eye + _exp_less_identity(skew.double(), _HALVINGS)).to(skew.dtype)
    # I − A/2 is never singular, so nothing asks whether it is: a GPU would wait for the answer
    return torch.linalg.solve_ex(eye - skew / 2, eye + skew / 2)[0]


def about_to_turn(rotation: Tensor, entries: Tensor) -> Tensor:
    """Return R · exp(A) at A = 0, which is R, with its gradient for A's free entries.

    Args:
        rotation: R, (1, n, n).
        entries: (1, n(n−1)/2), all zero.
    """
    turned: Tensor = _AboutToTurn.apply(entries, rotation)  # type: ignore[no-untyped-call]
    return turned


class _AboutToTurn(torch.autograd.Function):
    """d(R · exp(A)) = R dA at A = 0, so A's gradient is RᵀG, and what moves A_ij moves A_ji the other way."""

    @staticmethod
    def forward(ctx: Any, entries: Tensor, rotation: Tensor) -> Tensor:
        ctx.save_for_backward(rotation)
        return rotation.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (rotation,) = ctx.saved_tensors
        with coarse_products(rotation):
            pulled_back = rotation.mT @ outer[0]
        row, column = _below_diagonal(rotation)
        return (pulled_back - pulled_back.mT)[:, row, column], None


def turn(rotation: Tensor, entries: Tensor, defect: Tensor) -> Tensor:
    """Return R · exp(A), drawn back to SO(n) from where rounding had led R.

    R(I − Δ/2) is R's nearest rotation to first order in its defect Δ = RᵀR − I (Newton's iteration for the polar
    decomposition: Higham, Functions of Matrices, 2008, section 8.3), so what a step's rounding brings in, the next
    one takes out. On a GPU the products are coarse (`coarse_products`), but for R itself, which is added to: where A
    is small, so is the error. A longer step than LARGEST_TURN and MEAN_TURN allow is shortened, since beyond them the
    error would be more than rounding; at 3,072 rows they begin at nine times the usual learning rate.

    Args:
        rotation: R, (1, n, n) float32.
        entries: A's free entries, (1, n(n−1)/2).
        defect: `orthogonality_defect` of R.
    """
    skew = _one_step(skew_matrix(entries, rotation.shape[-1]))
    with coarse_products(rotation):
        step = _exp_less_identity(skew, 0).sub_(defect, alpha=0.5)
        return torch.baddbmm(rotation, rotation, step)


def _one_step(skew: Tensor) -> Tensor:
    """A, shortened if it must be, and rounded as its products will round it: A² must be the square of the A it is added
    to, or their sum is no part of a rotation. (An optimizer's first step has entries of one size: they err together.)
    """
    mean = skew.norm() / skew.shape[-1] ** 0.5
    times = torch.maximum(_largest_angle(skew) / LARGEST_TURN, mean / MEAN_TURN)
    return _rounded_to_tf32(skew / times.clamp(min=1))


def _largest_angle(skew: Tensor) -> Tensor:
    """The largest singular value of A, by power iteration: from below, within a few per cent where one stands out."""
    vector = torch.arange(skew.shape[-1], dtype=skew.dtype, device=skew.device).cos()
    length = vector.norm()
    for _ in range(_POWER_ITERATIONS):
        vector = skew[0] @ (vector / length.clamp(min=torch.finfo(skew.dtype).tiny))
        length = vector.norm()
    return length


@contextmanager
def coarse_products(matrices: Tensor) -> Iterator[None]:
    """Let a GPU's tensor cores make float32 products of large matrices, of factors rounded to 10 bits (TF32).

    For what meets bfloat16's 8 bits anyway, gradients that come from there and hidden states that go back to it, and
    for what is small beside the float32 it is added to.
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


def _exp_less_identity(skew: Tensor, halvings: int) -> Tensor:
    """exp(A) − I: a Taylor polynomial of degree 8 of A/2ᵏ, squared k times as (I + Z)² − I = 2Z + Z².

    The error of the polynomial is below (|A|/2ᵏ)⁹/9! · 2ᵏ: 5e-9 at k = 6 and |A| = 20, three full turns, and at k = 0
    and |A| = 0.5. `matrix_exp` would look at the norms from the host to choose its degree, which makes a GPU wait and
    cannot be captured in a CUDA graph. (Scaling and squaring: Higham, chapter 10.)
    """
    a = skew / 2**halvings
    a2 = a @ a
    a3, a4 = a2 @ a, a2 @ a2
    # in place, since a large matrix is read and written in the time of a product's tenth
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
    on_tensor_cores = rotation.is_cuda and rotation.dtype == torch.float32 and rotation.shape[-1] > BLOCK
    defect = _gram_of_halves(rotation) if on_tensor_cores else rotation.mT @ rotation
    defect.diagonal(dim1=-2, dim2=-1).sub_(1)
    return defect


def _gram_of_halves(matrices: Tensor) -> Tensor:
    """MᵀM to float32's accuracy on tensor cores that round factors to 10 bits.

    M = H + L with the upper bits in H, whose products are exact, and MᵀM = HᵀH + HᵀL + (HᵀL)ᵀ but for LᵀL, 2⁻²² beside
    1; HᵀL is so small that bfloat16 will do for it. A tensor core cuts off where it sums up, always downwards, so HᵀH
    comes in parts that are added outside (Ootomo and Yokota 2022, arXiv:2203.03341). At 3,072 rows an H200 takes a
    third of the time of float32, and is as far off, 2e-6.
    """
    upper = _rounded_to_tf32(matrices)
    crossed = upper.bfloat16().mT @ (matrices - upper).bfloat16()
    gram = crossed.float().add_(crossed.mT)
    with coarse_products(matrices):
        for part in upper.chunk(_GRAM_PARTS, dim=1):
            gram.baddbmm_(part.mT, part)
    return gram


def _rounded_to_tf32(values: Tensor) -> Tensor:
    half, mask = 1 << (_BITS_LESS - 1), -(1 << _BITS_LESS)
    return ((values.view(torch.int32) + half) & mask).view(torch.float32)


def determinant_sign(rotation: Tensor) -> Tensor:
    """Return the sign of each block's determinant, (blocks,): +1 a rotation, −1 a reflection."""
    return torch.linalg.slogdet(rotation.double()).sign.to(rotation.dtype)
