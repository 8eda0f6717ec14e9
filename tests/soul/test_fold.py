"""The fold is exact: the folded head gives without a soul what the head gives with one."""

import pytest
import torch
from torch import Tensor

from aegis.errors import IntegrityError
from aegis.soul import rotation as so
from aegis.soul.fold import fold_head
from aegis.soul.module import Soul

GATE_ALPHA = 1.618  # g = 0.83


@pytest.fixture(params=["so8", "dense"])
def soul(request: pytest.FixtureRequest) -> Soul:
    """Far from the identity: a Haar start."""
    soul = Soul(64, kind=request.param, seed=5, alpha=GATE_ALPHA)
    assert (soul.rotation() - torch.eye(soul.start.shape[-1])).abs().max() > 0.5
    return soul.eval()


def relative_error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def test_folded_head_equals_live_soul(soul: Soul) -> None:
    """To float32 rounding, bias included; the unfolded head and the head folded with Rᵀ miss by orders."""
    generator = torch.Generator().manual_seed(7)
    head, bias = torch.randn(200, 64, generator=generator), torch.randn(200, generator=generator)
    hidden = torch.randn(30, 64, generator=generator)
    with torch.no_grad():
        gate = torch.sigmoid(soul.alpha).item()
        live = torch.nn.functional.linear(soul(hidden), head, bias)
        rotation = soul.rotation()
        folded = torch.nn.functional.linear(hidden, fold_head(head, rotation, gate), bias)
        unfolded = torch.nn.functional.linear(hidden, head, bias)
        transposed = torch.nn.functional.linear(hidden, fold_head(head, rotation.mT, gate), bias)
    assert relative_error(folded, live) < 1e-6
    assert relative_error(unfolded, live) > 0.3
    assert relative_error(transposed, live) > 0.3


def test_slabs_fold_like_the_whole(soul: Soul) -> None:
    head = torch.randn(50, 64)
    whole = fold_head(head, soul.rotation().detach(), 0.5)
    slabs = torch.cat([fold_head(head[i : i + 7], soul.rotation().detach(), 0.5) for i in range(0, 50, 7)])
    assert torch.allclose(whole, slabs, rtol=0, atol=1e-5)


def test_computes_as_wide_as_the_rotation() -> None:
    rotation = so.random_rotation(2, 8, torch.Generator().manual_seed(0)).double()
    assert fold_head(torch.randn(3, 16, dtype=torch.bfloat16), rotation, 0.5).dtype == torch.float64


def test_width_must_fit() -> None:
    with pytest.raises(IntegrityError, match="16 wide and the LM head 24"):
        fold_head(torch.randn(3, 24), so.random_rotation(2, 8, torch.Generator()), 0.5)
