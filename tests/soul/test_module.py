"""The trainable soul: exact at every step, float32 whatever happens round it."""

import pytest
import torch

from aegis.soul import rotation as so
from aegis.soul.module import Soul


@pytest.mark.parametrize("kind", ["so8", "dense"])
def test_stays_a_rotation_under_an_optimizer(kind: so.Kind) -> None:
    """Fifty large Adam steps leave R in SO(n), and move it."""
    soul = Soul(32, kind=kind, seed=1, alpha=0.5)
    before = soul.rotation().detach().clone()
    optimizer = torch.optim.Adam([soul.skew], lr=0.05)
    hidden, wanted = torch.randn(64, 32), torch.randn(64, 32)
    for _ in range(50):
        optimizer.zero_grad()
        (soul(hidden) - wanted).square().mean().backward()
        optimizer.step()
    after = soul.rotation().detach()
    assert so.orthogonality_defect(after).abs().max() < so.ORTHOGONALITY_BOUND
    assert (so.determinant_sign(after) == 1).all()
    assert (after - before).abs().max() > 0.1
    assert so.orthogonality_defect(after).square().sum() < 1e-8


def test_output_is_h_plus_g_r_h() -> None:
    soul = Soul(16, alpha=1.618, seed=2)
    hidden = torch.randn(3, 16)
    expected = hidden + torch.sigmoid(torch.tensor(1.618)) * so.apply_rotation(soul.rotation().detach(), hidden)
    assert torch.allclose(soul(hidden), expected, atol=1e-6)


def test_identity_start_only_scales() -> None:
    soul = Soul(16, init="identity", alpha=0.0)
    hidden = torch.randn(3, 16)
    assert torch.allclose(soul(hidden), 1.5 * hidden, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """`matrix_exp` in half precision gives NaN in silence, so a cast is an error; a move is not."""
    soul = Soul(16)
    with pytest.raises(TypeError, match="float32"):
        soul.to(dtype)
    assert soul.to("cpu").skew.dtype == torch.float32


def test_autocast_does_not_reach_it() -> None:
    """Under autocast R stays orthogonal to float32; the same product left to autocast does not."""
    soul = Soul(64, kind="dense", seed=1)
    with torch.no_grad():
        soul.skew.normal_(0, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotation = soul.rotation()
        control = soul.start @ so.rotate(so.skew_matrix(soul.skew, 64), "exp")
        mixed = soul(torch.randn(2, 64, dtype=torch.bfloat16))
    assert rotation.dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    assert so.orthogonality_defect(rotation).abs().max() < so.ORTHOGONALITY_BOUND
    assert so.orthogonality_defect(control.float()).abs().max() > 10 * so.ORTHOGONALITY_BOUND


def test_a_trainable_soul_never_gives_an_old_rotation() -> None:
    """Outside of a graph too, and when the parameter moved behind autograd's back, as fused optimizers move it."""
    soul = Soul(16, seed=1)
    with torch.no_grad():
        first = soul.rotation()
        soul.skew.data.add_(0.3)  # leaves the version counter where it was
        assert (soul.rotation() - first).abs().max() > 0.01


def test_a_frozen_soul_builds_its_rotation_once() -> None:
    soul = Soul(16, seed=1).requires_grad_(False)
    assert soul.rotation() is soul.rotation()
    assert torch.equal(soul.rotation(), Soul(16, seed=1).rotation())


def test_alpha_learns_only_when_told() -> None:
    hidden = torch.randn(4, 16)
    fixed, learned = Soul(16, alpha=0.1), Soul(16, alpha=0.1, alpha_is_learned=True)
    fixed(hidden).square().mean().backward()
    learned(hidden).square().mean().backward()
    assert fixed.alpha.grad is None
    assert learned.alpha.grad is not None
    assert learned.alpha.grad != 0
