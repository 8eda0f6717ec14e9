"""Tests that value and gradient of the chunked loss equal the plain ones."""

import pytest
import torch
from torch import Tensor

from aegis.training.kernels import head_chunks
from aegis.training.kernels.chunked_loss import head_loss


def plain(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    logits = torch.nn.functional.linear(hidden, head, bias).float()
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("with_bias", [False, True])
def test_the_loss_equals_plain_cross_entropy(monkeypatch: pytest.MonkeyPatch, rows: int, with_bias: bool) -> None:
    """For chunks that divide the rows and chunks that do not; a loss over shifted targets misses."""
    vocab_size = 50
    monkeypatch.setattr(head_chunks, "CHUNK_BYTES", 4 * vocab_size * 5)
    generator = torch.Generator().manual_seed(rows)
    head = torch.randn(vocab_size, 16, generator=generator)
    bias = torch.randn(vocab_size, generator=generator) if with_bias else None
    targets = torch.randint(0, vocab_size, (rows,), generator=generator)
    ours = torch.randn(rows, 16, generator=generator, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    one, other = head_loss(ours, head, bias, targets), plain(theirs, head, bias, targets)
    (one / 3).backward()
    (other / 3).backward()
    assert torch.allclose(one, other, rtol=1e-5)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one, plain(theirs, head, bias, (targets + 1) % vocab_size), rtol=1e-5)


def test_half_precision_keeps_a_float32_value() -> None:
    """bfloat16 in, a float32 loss out: within 3e-3 of float32's, where a bfloat16 scalar counts in steps of 2."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(300, 32, generator=generator), torch.randn(400, 32, generator=generator) / 6
    targets = torch.randint(0, 400, (300,), generator=generator)
    found = head_loss(hidden.bfloat16(), head.bfloat16(), None, targets)
    wanted = plain(hidden.bfloat16().float(), head.bfloat16().float(), None, targets)
    assert found.dtype == torch.float32
    assert abs(found - wanted) / wanted < 3e-3
    assert abs(found - wanted) < 2


def test_a_batch_without_targets_has_a_loss_of_zero_with_a_gradient() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    loss = head_loss(hidden, torch.randn(5, 8), None, torch.empty(0, dtype=torch.long))
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None


def test_evaluation_computes_no_gradient() -> None:
    """Without a graph the chunk's backward product is not computed; the value is the same."""
    hidden, head, targets = torch.randn(9, 8), torch.randn(20, 8), torch.randint(0, 20, (9,))
    with torch.no_grad():
        assert torch.allclose(head_loss(hidden, head, None, targets), plain(hidden, head, None, targets))
