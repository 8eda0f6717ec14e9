"""Tests that R is a rotation by construction, from any start, for both maps."""

import pytest
import torch

from aegis.errors import UsageError
from aegis.soul import rotation as so
from aegis.soul.kind import block_shape, kind_of

SHAPES = [block_shape("so8", 64), block_shape("so32", 64), block_shape("dense", 24)]


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
@pytest.mark.parametrize("kind", ["exp", "cayley"])
def test_a_rotation_is_its_start_times_the_map_of_its_skew_matrix(shape: tuple[int, int], kind: so.Map) -> None:
    """R₀ · map(A), with that product's gradients; from another start both are others."""
    skew = so.skew_matrix(entries(*shape), shape[1]).double()
    start, other = (so.random_rotation(*shape, torch.Generator().manual_seed(seed)).double() for seed in (2, 3))
    outer = torch.randn(skew.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def product(start: torch.Tensor, written_out: bool) -> list[torch.Tensor]:
        given = skew.clone().requires_grad_()
        mapped = so.rotate(given, kind)
        if written_out:
            eye = torch.eye(shape[1], dtype=torch.float64)
            mapped = torch.linalg.matrix_exp(given)
            if kind == "cayley":
                mapped = torch.linalg.inv(eye - given / 2) @ (eye + given / 2)
        rotation = start @ mapped
        rotation.backward(outer)
        assert given.grad is not None
        return [rotation.detach(), given.grad]

    # the starts are rotations to float32's rounding
    torch.testing.assert_close(product(start, False), product(start, True), rtol=1e-4, atol=1e-5)
    for one, another in zip(product(start, False), product(other, True), strict=True):
        assert (one - another).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["exp", "cayley"])
def test_the_orthogonality_loss_has_no_gradient(kind: so.Map) -> None:
    """Also from a start that is not quite orthogonal, where it is not zero; a matrix that may leave SO(n) has one."""
    start = so.random_rotation(1, 24, torch.Generator().manual_seed(2)).double()
    start += 1e-2 * torch.randn(start.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def gradient(free: bool) -> float:
        given = entries(1, 24, 0.1).double().requires_grad_()
        skew = so.skew_matrix(given, 24)
        # the written-out map: the one under test leaves this gradient out
        mapped = torch.eye(24) + skew if free else torch.linalg.matrix_exp(skew)
        if kind == "cayley" and not free:
            mapped = torch.linalg.inv(torch.eye(24) - skew / 2) @ (torch.eye(24) + skew / 2)
        loss = so.orthogonality_defect(start @ mapped).square().sum()
        assert loss > 1e-3
        (found,) = torch.autograd.grad(loss, given)
        return found.abs().max().item()

    assert gradient(free=False) < 1e-12
    assert gradient(free=True) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_random_start_is_a_rotation_and_reproducible(shape: tuple[int, int]) -> None:
    """Every draw has det +1 (plain QR gives −1 for half of them), and a seed names one draw."""
    draws = [so.random_rotation(*shape, torch.Generator().manual_seed(seed)) for seed in range(8)]
    for draw in draws:
        assert so.orthogonality_defect(draw).abs().max() < so.ORTHOGONALITY_BOUND
        assert (so.determinant_sign(draw) == 1).all()
    assert torch.equal(draws[0], so.random_rotation(*shape, torch.Generator().manual_seed(0)))
    assert not torch.equal(draws[0], draws[1])


def test_a_random_start_is_haar_distributed() -> None:
    """Under the Haar measure E[tr R] = 0 and E[(tr R)²] = 1; a rotation near the identity has tr R = 8."""
    draws = so.random_rotation(4000, 8, torch.Generator().manual_seed(3))
    trace = draws.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert trace.mean().abs() < 0.08
    assert (trace.square().mean() - 1).abs() < 0.15


def test_applying_blocks_equals_the_complete_matrix() -> None:
    """so8 applied block by block is F.linear with the block-diagonal R; with Rᵀ it is something else."""
    rotation = so.random_rotation(3, 8, torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 2, 24, generator=torch.Generator().manual_seed(1))
    whole = torch.block_diag(*rotation)
    assert torch.allclose(so.apply_rotation(rotation, hidden), torch.nn.functional.linear(hidden, whole), atol=1e-6)
    assert (so.apply_rotation(rotation, hidden) - hidden @ whole).abs().max() > 0.1


def test_a_width_must_be_a_multiple_of_the_blocks() -> None:
    with pytest.raises(UsageError, match="so8 needs a hidden size divisible by 8"):
        block_shape("so8", 60)
    with pytest.raises(UsageError, match="so64 needs a hidden size divisible by 64"):
        block_shape("so64", 96)


def test_a_shape_without_a_kind_is_known_as_such() -> None:
    assert [kind_of(4, 8), kind_of(2, 64), kind_of(1, 24), kind_of(2, 24)] == ["so8", "so64", "dense", None]


def test_a_coarse_dense_rotation_has_the_same_gradients() -> None:
    """On a CPU, which has no coarser products, to the last bits; tests/training/test_gpu.py has them on a GPU."""
    rotation = so.random_rotation(1, 24, torch.Generator().manual_seed(0))
    hidden = torch.randn(5, 2, 24, generator=torch.Generator().manual_seed(1)).bfloat16().float()

    def through(coarse: bool) -> list[torch.Tensor]:
        given = hidden.clone().requires_grad_(), rotation.clone().requires_grad_()
        turned = so.apply_rotation(given[1], given[0], coarse=coarse)
        turned.square().sum().backward()
        return [turned.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]

    whole, coarse = through(False), through(True)
    assert len(whole) == len(coarse) == 3
    torch.testing.assert_close(coarse, whole)
    assert (coarse[2] - whole[2].mT).abs().max() > 0.1
