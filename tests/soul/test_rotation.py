"""R is a rotation: by construction, from any start, for both maps."""

import pytest
import torch

from aegis.errors import UsageError
from aegis.soul import rotation as so

SHAPES = [so.block_shape("so8", 64), so.block_shape("dense", 24)]


def entries(blocks: int, n: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(blocks, n * (n - 1) // 2, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["exp", "cayley"])
def test_maps_give_rotations(shape: tuple[int, int], kind: so.Map) -> None:
    """Both maps land in SO(n) to float32 rounding; a matrix that is only nearly skew does not."""
    skew = so.skew_matrix(entries(*shape), shape[1])
    rotation = so.rotate(skew, kind)
    assert so.orthogonality_defect(rotation).abs().max() < so.ORTHOGONALITY_BOUND
    assert (so.determinant_sign(rotation) == 1).all()
    control = so.rotate(skew + 1e-3 * torch.ones_like(skew), kind)
    assert so.orthogonality_defect(control).abs().max() > so.ORTHOGONALITY_BOUND


def test_maps_agree_to_second_order() -> None:
    """exp(A) and Cayley(A) differ by O(|A|³), and are not transposes of each other."""
    skew = so.skew_matrix(entries(4, 8, 1e-2), 8)
    exp, cayley = so.rotate(skew, "exp"), so.rotate(skew, "cayley")
    assert (exp - cayley).abs().max() < 1e-5
    assert (exp - cayley.mT).abs().max() > 1e-2


@pytest.mark.parametrize("shape", SHAPES)
def test_random_start_is_in_so_and_reproducible(shape: tuple[int, int]) -> None:
    """Every draw has det +1 (plain QR gives −1 for half of them), and a seed names one draw."""
    draws = [so.random_rotation(*shape, torch.Generator().manual_seed(seed)) for seed in range(8)]
    for draw in draws:
        assert so.orthogonality_defect(draw).abs().max() < so.ORTHOGONALITY_BOUND
        assert (so.determinant_sign(draw) == 1).all()
    assert torch.equal(draws[0], so.random_rotation(*shape, torch.Generator().manual_seed(0)))
    assert not torch.equal(draws[0], draws[1])


def test_random_start_is_haar() -> None:
    """Under the Haar measure E[tr R] = 0 and E[(tr R)²] = 1; a rotation near the identity has tr R = 8."""
    draws = so.random_rotation(4000, 8, torch.Generator().manual_seed(3))
    trace = draws.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert trace.mean().abs() < 0.08
    assert (trace.square().mean() - 1).abs() < 0.15


def test_apply_matches_the_written_out_matrix() -> None:
    """so8 applied block by block is F.linear with the block-diagonal R; with Rᵀ it is something else."""
    rotation = so.random_rotation(3, 8, torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 2, 24, generator=torch.Generator().manual_seed(1))
    whole = torch.block_diag(*rotation)
    assert torch.allclose(so.apply_rotation(rotation, hidden), torch.nn.functional.linear(hidden, whole), atol=1e-6)
    assert (so.apply_rotation(rotation, hidden) - hidden @ whole).abs().max() > 0.1


def test_width_must_be_a_multiple_of_eight() -> None:
    with pytest.raises(UsageError, match="divisible by 8"):
        so.block_shape("so8", 60)
