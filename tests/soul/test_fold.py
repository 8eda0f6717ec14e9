"""Tests that the fold is exact: the folded head gives the same logits as the head with the soul."""

import pytest
import torch
from torch import Tensor

from aegis.errors import IntegrityError
from aegis.soul import rotation as so
from aegis.soul.fold import counter_scale, fold_head, scale_norm
from aegis.soul.module import Soul

GATE_ALPHA = 1.618  # g = 0.83


@pytest.fixture(params=["so8", "dense"])
def soul(request: pytest.FixtureRequest) -> Soul:
    """Return a soul far from the identity, with a Haar start."""
    soul = Soul(64, kind=request.param, init="random", seed=5, alpha=GATE_ALPHA)
    assert (soul.rotation() - torch.eye(soul.start.shape[-1])).abs().max() > 0.5
    return soul.eval()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_folded_norm_and_head_equal_the_live_soul(soul: Soul, offset: float) -> None:
    """To float32 rounding, biases included; each part that is left out or transposed misses by orders.

    The norm is an RMSNorm with a bias, in Llama's form x̂·w and in Gemma's x̂·(1 + w).
    """
    generator = torch.Generator().manual_seed(7)
    head, bias = torch.randn(200, 64, generator=generator), torch.randn(200, generator=generator)
    weight, shift = torch.randn(64, generator=generator), torch.randn(64, generator=generator)
    normed = torch.nn.functional.rms_norm(torch.randn(30, 64, generator=generator), (64,))
    with torch.no_grad():
        gate = torch.sigmoid(soul.alpha).item()
        scale, rotation = counter_scale(gate), soul.rotation()
        live = torch.nn.functional.linear(soul(normed * (weight + offset) + shift), head, bias)

    def logits(weight: Tensor, shift: Tensor, head: Tensor) -> Tensor:
        return torch.nn.functional.linear(normed * (weight + offset) + shift, head, bias)

    scaled = scale_norm(weight, scale, offset), scale_norm(shift, scale, 0.0)
    folded = fold_head(head, rotation, gate).detach()
    assert relative_error(logits(*scaled, folded), live) < 1e-6
    assert relative_error(logits(*scaled, head), live) > 0.3, "unfolded head"
    assert relative_error(logits(*scaled, fold_head(head, rotation.mT, gate).detach()), live) > 0.3, "transposed"
    assert relative_error(logits(weight, shift, folded), live) > 0.3, "norm without counter-scale"
    assert relative_error(logits(scaled[0], shift, folded), live) > 0.1, "bias without counter-scale"


def test_a_soul_without_counter_scale_folds_into_the_head_alone() -> None:
    soul = Soul(64, init="random", seed=5, alpha=GATE_ALPHA, counter_scale=False).eval()
    head, hidden = torch.randn(200, 64), torch.randn(30, 64)
    with torch.no_grad():
        gate = torch.sigmoid(soul.alpha).item()
        live = torch.nn.functional.linear(soul(hidden), head)
        folded = torch.nn.functional.linear(hidden, fold_head(head, soul.rotation(), gate))
    assert relative_error(folded, live) < 1e-6
    assert relative_error(folded * counter_scale(gate), live) > 0.3


def test_slabs_of_a_head_fold_like_the_complete_head(soul: Soul) -> None:
    head = torch.randn(50, 64)
    whole = fold_head(head, soul.rotation().detach(), 0.5)
    slabs = torch.cat([fold_head(head[i : i + 7], soul.rotation().detach(), 0.5) for i in range(0, 50, 7)])
    assert torch.allclose(whole, slabs, rtol=0, atol=1e-5)


def test_the_fold_computes_in_the_rotations_dtype() -> None:
    rotation = so.random_rotation(2, 8, torch.Generator().manual_seed(0)).double()
    assert fold_head(torch.randn(3, 16, dtype=torch.bfloat16), rotation, 0.5).dtype == torch.float64


def test_a_head_of_another_width_is_refused() -> None:
    with pytest.raises(IntegrityError, match="16 wide and the LM head 24"):
        fold_head(torch.randn(3, 24), so.random_rotation(2, 8, torch.Generator()), 0.5)
