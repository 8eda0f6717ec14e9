"""Tests that value and gradient of the chunked divergence equal the plain ones in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aegis.training.kernels import head_chunks
from aegis.training.kernels.chunked_divergence import head_divergence


def plain(hidden: Tensor, base: Tensor, head: Tensor, bias: Tensor | None, counted: Tensor) -> Tensor:
    """Return KL(base ‖ trained) summed over the counted rows, in float64."""
    wide = None if bias is None else bias.double()
    trained, wanted = (
        torch.nn.functional.linear(side.double(), head.double(), wide)[counted].log_softmax(-1)
        for side in (hidden, base)
    )
    return torch.nn.functional.kl_div(trained, wanted, reduction="sum", log_target=True)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_value_and_gradient_agree_with_float64(monkeypatch: pytest.MonkeyPatch, rows: int, with_bias: bool) -> None:
    """For chunks that divide the rows and chunks that do not; the reversed KL differs."""
    vocab_size = 50
    monkeypatch.setattr(head_chunks, "CHUNK_BYTES", 8 * vocab_size * 5)
    generator = torch.Generator().manual_seed(rows)
    head = torch.randn(vocab_size, 16, generator=generator)
    bias = torch.randn(vocab_size, generator=generator) if with_bias else None
    base = torch.randn(rows, 16, generator=generator)
    counted = torch.arange(rows) % 3 != 1
    ours = torch.randn(rows, 16, generator=generator, requires_grad=True)
    theirs = ours.detach().double().requires_grad_()
    one, other = head_divergence(ours, base, head, bias, counted), plain(theirs, base, head, bias, counted)
    (one / 3).backward()
    (other / 3).backward()
    assert one.item() == pytest.approx(other.item(), rel=1e-5)
    assert torch.allclose(ours.grad.double(), theirs.grad, rtol=1e-4, atol=1e-6)
    assert one.item() != pytest.approx(plain(base, ours.detach(), head, bias, counted).item(), rel=1e-3)


def test_equal_states_have_no_divergence_and_no_gradient() -> None:
    """To the bit, in every dtype; states of another model do both."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        head = torch.randn(40, 8, generator=generator).to(dtype)
        states = torch.randn(6, 8, generator=generator).to(dtype)
        hidden = states.clone().requires_grad_()
        found = head_divergence(hidden, states, head, None, torch.ones(6, dtype=torch.bool))
        found.backward()
        assert found == 0
        assert not hidden.grad.any()
        other = head_divergence(hidden, states.roll(1, 0), head, None, torch.ones(6, dtype=torch.bool))
        (pull,) = torch.autograd.grad(other, hidden)
        assert other > 0.1
        assert pull.abs().max() > 0.01


def test_half_precision_keeps_a_float32_value() -> None:
    """bfloat16 in, a float32 sum out, near that of the same numbers in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, base = (torch.randn(300, 32, generator=generator).bfloat16() for _ in range(2))
    head = (torch.randn(400, 32, generator=generator) / 6).bfloat16()
    counted = torch.ones(300, dtype=torch.bool)
    found, wanted = head_divergence(hidden, base, head, None, counted), plain(hidden, base, head, None, counted)
    assert found.dtype == torch.float32
    assert abs(found - wanted) / wanted < 3e-3


def test_rows_that_do_not_count_have_no_gradient() -> None:
    hidden = torch.randn(4, 8, requires_grad=True)
    head_divergence(
        hidden, torch.randn(4, 8), torch.randn(9, 8), None, torch.tensor([True, False, True, False])
    ).backward()
    assert hidden.grad[[0, 2]].abs().min() > 0
    assert not hidden.grad[[1, 3]].any()


def test_evaluation_computes_no_gradient() -> None:
    """Without a graph the chunk's backward product is not computed; the value is the same."""
    hidden, base, head = torch.randn(9, 8), torch.randn(9, 8), torch.randn(20, 8)
    counted = torch.ones(9, dtype=torch.bool)
    with torch.no_grad():
        found = head_divergence(hidden, base, head, None, counted)
    assert not found.requires_grad
    assert found.item() == pytest.approx(plain(hidden, base, head, None, counted).item(), rel=1e-5)
