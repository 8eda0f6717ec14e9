"""Tests of the trainable soul: exact at every step, and in float32 under autocast."""

import pytest
import torch

from aegis.soul import retraction
from aegis.soul import rotation as so
from aegis.soul.angles import rotation_angles
from aegis.soul.kind import Kind
from aegis.soul.module import Soul


def learn(soul: Soul, steps: int, rate: float, wanted: torch.Tensor) -> list[float]:
    """Train R h towards `wanted` · h with Adam, with the steps of training; return the losses."""
    optimizer = torch.optim.Adam([soul.skew], lr=rate)
    hidden = torch.randn(256, soul.hidden_size, generator=torch.Generator().manual_seed(3))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        soul.cache_rotation()
        target = (hidden + soul.alpha.sigmoid() * hidden @ wanted.mT) / (1 + soul.alpha.sigmoid())
        loss = (soul(hidden) - target.detach()).square().mean()
        loss.backward()
        soul.release()
        optimizer.step()
        soul.retract()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["so8", "so16", "dense"])
def test_r_stays_a_rotation_under_an_optimizer(kind: Kind) -> None:
    """Two hundred Adam steps, large ones too, leave R in SO(n); and it learns a rotation, however far away."""
    for rate, close in ((0.05, 0.02), (0.3, None)):
        soul = Soul(32, kind=kind, init="random", seed=1, alpha=0.5)
        before = soul.rotation().detach().clone()
        wanted = torch.block_diag(*so.random_rotation(4, 8, torch.Generator().manual_seed(9)))
        losses = learn(soul, 200, rate, wanted)
        after = soul.rotation().detach()
        assert so.orthogonality_defect(after).abs().max() < so.ORTHOGONALITY_BOUND
        assert (so.determinant_sign(after) == 1).all()
        assert (after - before).abs().max() > 0.1
        assert so.orthogonality_defect(after).square().sum() < 1e-8
        assert close is None or losses[-1] < close * losses[0]


def test_a_dense_souls_step_is_the_exponential_of_its_skew_matrix() -> None:
    """One step turns R to R · exp(A), and the gradient is that of R · exp(A) at A = 0; the transposed ones miss."""
    soul = Soul(24, kind="dense", init="random", seed=1, alpha=0.5)
    start = soul.start.double().clone()
    hidden, outer = torch.randn(2, 9, 24, generator=torch.Generator().manual_seed(0)).unbind()
    soul.cache_rotation()
    soul(hidden).backward(outer)
    soul.release()
    entries = torch.zeros_like(soul.skew, dtype=torch.float64, requires_grad=True)
    turned = start @ torch.linalg.matrix_exp(so.skew_matrix(entries, 24))
    gate = soul.alpha.double().sigmoid()
    mixed = (hidden.double() + gate * so.apply_rotation(turned, hidden.double())) / (1 + gate)
    (wanted,) = torch.autograd.grad(mixed, entries, outer.double())
    assert soul.skew.grad is not None
    torch.testing.assert_close(soul.skew.grad.double(), wanted, rtol=1e-4, atol=1e-5)
    assert (soul.skew.grad + wanted).abs().max() > 0.1
    with torch.no_grad():
        soul.skew.normal_(0, 0.01, generator=torch.Generator().manual_seed(2))
        moved = start @ torch.linalg.matrix_exp(so.skew_matrix(soul.skew.double(), 24))
    soul.retract()
    assert not soul.skew.any()
    torch.testing.assert_close(soul.rotation().detach().double(), moved, rtol=0, atol=2e-5)
    assert (soul.rotation() - moved.mT).abs().max() > 0.1


def test_a_long_step_of_a_dense_soul_is_shortened() -> None:
    """However much is asked for: in the mean over planes, and in one plane alone; the direction stays."""
    below = torch.tril_indices(256, 256, -1)
    one, other = torch.randn(2, 256, generator=torch.Generator().manual_seed(2)).unbind()
    everywhere = torch.randn(256, 256, generator=torch.Generator().manual_seed(2))
    one_plane = torch.outer(one, other)
    for asked, alone in ((everywhere - everywhere.mT, False), (one_plane - one_plane.mT, True)):
        soul = Soul(256, kind="dense", init="identity")
        soul.cache_rotation()
        soul.release()
        with torch.no_grad():
            soul.skew.copy_(asked[None, below[0], below[1]])
        soul.retract()
        angles = soul.turned_angles().sort().values
        mean = (2 * angles.square().sum() / 256).sqrt()
        assert (
            angles.max() == pytest.approx(retraction.LARGEST_TURN, abs=0.01)
            if alone
            else angles.max() < retraction.LARGEST_TURN
        )
        assert mean < retraction.MEAN_TURN + 1e-3
        wanted = torch.linalg.svdvals(asked.double())[::2].sort().values
        assert torch.allclose(angles / angles.max(), wanted / wanted.max(), atol=5e-3)
        assert so.orthogonality_defect(soul.start).abs().max() < so.ORTHOGONALITY_BOUND


def test_a_dense_soul_is_moved_back_to_the_rotations() -> None:
    """A defect that something has brought in is gone after a step or two; without the correction it would stay."""
    soul = Soul(24, kind="dense", init="random", seed=1)
    with torch.no_grad():
        soul.start += 1e-3 * torch.randn(soul.start.shape, generator=torch.Generator().manual_seed(5))

    def defect() -> float:
        return so.orthogonality_defect(soul.start).abs().max().item()

    found = [defect()]
    for _ in range(2):
        soul.cache_rotation()
        soul.release()
        soul.retract()
        found.append(defect())
    assert found[0] > 1e-3
    assert found[1] < 1e-4
    assert found[2] < 1e-6


@pytest.mark.parametrize("kind", ["so8", "dense"])
def test_a_soul_knows_how_far_it_has_turned(kind: Kind) -> None:
    soul = Soul(16, kind=kind, init="random", seed=1, alpha=0.5)
    assert soul.turned_angles().max() < 1e-3
    learn(soul, 30, 0.05, torch.block_diag(*so.random_rotation(2, 8, torch.Generator().manual_seed(9))))
    wanted = rotation_angles(soul.initial.mT @ soul.rotation().detach())
    assert torch.allclose(soul.turned_angles().sort().values, wanted.sort().values, atol=1e-3)
    assert soul.turned_angles().max() > 0.3


@pytest.mark.parametrize("counter_scale", [True, False])
def test_the_output_is_h_plus_g_r_h_with_or_without_counter_scale(counter_scale: bool) -> None:
    soul = Soul(16, alpha=1.618, init="random", seed=2, counter_scale=counter_scale)
    hidden, gate = torch.randn(3, 16), torch.sigmoid(torch.tensor(1.618))
    mixed = hidden + gate * so.apply_rotation(soul.rotation().detach(), hidden)
    assert torch.allclose(soul(hidden), mixed / (1 + gate) if counter_scale else mixed, atol=1e-6)
    assert not torch.allclose(soul(hidden), mixed if counter_scale else mixed / (1 + gate), atol=1e-2)


@pytest.mark.parametrize("alpha", [-5.0, 0.0, 1.618, 20.0])
def test_the_identity_changes_nothing_at_any_gate(alpha: float) -> None:
    """Without counter-scale it multiplies by 1 + g."""
    hidden = torch.randn(3, 16)
    assert torch.allclose(Soul(16, alpha=alpha)(hidden), hidden, atol=1e-6)
    bare = Soul(16, alpha=alpha, counter_scale=False)
    assert torch.allclose(bare(hidden), (1 + torch.sigmoid(torch.tensor(alpha))) * hidden, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    """`matrix_exp` in half precision gives NaN in silence, so a cast is an error; a move is not."""
    soul = Soul(16)
    with pytest.raises(TypeError, match="float32"):
        soul.to(dtype)
    assert soul.to("cpu").skew.dtype == torch.float32


def test_autocast_does_not_change_the_souls_precision() -> None:
    """Under autocast R stays orthogonal to float32; the same product left to autocast does not."""
    soul = Soul(64, init="random", seed=1)
    with torch.no_grad():
        soul.skew.normal_(0, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rotation = soul.rotation()
        control = soul.start @ so.rotate(so.skew_matrix(soul.skew, 8), "exp")
        mixed = soul(torch.randn(2, 64, dtype=torch.bfloat16))
    assert rotation.dtype == torch.float32
    assert mixed.dtype == torch.bfloat16
    assert so.orthogonality_defect(rotation).abs().max() < so.ORTHOGONALITY_BOUND
    assert so.orthogonality_defect(control.float()).abs().max() > 10 * so.ORTHOGONALITY_BOUND
    dense = Soul(64, kind="dense", init="random", seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learn(dense, 5, 0.01, so.random_rotation(1, 64, torch.Generator().manual_seed(9))[0])
    assert so.orthogonality_defect(dense.start).abs().max() < so.ORTHOGONALITY_BOUND


def test_a_trainable_soul_never_returns_an_old_rotation() -> None:
    """Outside of a graph too, and when the parameter moved behind autograd's back, as fused optimizers move it."""
    soul = Soul(16, init="random", seed=1)
    with torch.no_grad():
        first = soul.rotation()
        soul.skew.data.add_(0.3)  # leaves the version counter where it was
        assert (soul.rotation() - first).abs().max() > 0.01


def test_a_frozen_soul_computes_its_rotation_once() -> None:
    soul = Soul(16, init="random", seed=1).requires_grad_(False)
    assert soul.rotation() is soul.rotation()
    assert torch.equal(soul.rotation(), Soul(16, init="random", seed=1).rotation())


def test_alpha_gets_a_gradient_only_if_it_is_learned() -> None:
    hidden = torch.randn(4, 16)
    fixed, learned = (Soul(16, init="random", alpha=0.1, alpha_is_learned=moves) for moves in (False, True))
    fixed(hidden).square().mean().backward()
    learned(hidden).square().mean().backward()
    assert fixed.alpha.grad is None
    assert learned.alpha.grad is not None
    assert learned.alpha.grad != 0
