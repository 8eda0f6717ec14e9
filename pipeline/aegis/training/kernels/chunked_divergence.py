"""KL(base ‖ trained) through the LM head, in chunks of rows: the logits of all rows never exist at the same time.

As in `chunked_loss`, the head is frozen and only the trained hidden states need a gradient. The forward pass computes
it while it has a chunk's logits: ∂KL/∂logits = softmax(trained) − softmax(base).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.training.kernels.head_chunks import compile_once, head_chunks, scaled_gradient


def _errors(
    trained: Tensor, base: Tensor, bias: Tensor | None, counted: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return a chunk's summed divergence, and softmax(trained) − softmax(base) in `dtype`; zero where not `counted`."""
    trained, base = trained.float(), base.float()
    if bias is not None:
        trained, base = trained + bias.float(), base + bias.float()
    trained, base = trained.log_softmax(-1), base.log_softmax(-1)
    wanted = base.exp()
    counted = counted.unsqueeze(-1)
    divergence = torch.where(counted, wanted * (base - trained), 0.0).sum()
    error = torch.where(counted, trained.exp() - wanted, 0.0)
    return divergence, error.to(dtype)


class _HeadDivergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        base_hidden: Tensor,
        head: Tensor,
        base_head: Tensor,
        bias: Tensor | None,
        counted: Tensor,
        compiled: bool,
    ) -> Tensor:
        errors = compile_once(_errors) if compiled else _errors
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in head_chunks(hidden, head, sides=2):
            divergence, error = errors(
                hidden[rows] @ head.T, base_hidden[rows] @ base_head.T, bias, counted[rows], head.dtype
            )
            total += divergence
            if gradient is not None:
                torch.mm(error, head, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return scaled_gradient(ctx, outer[0]), None, None, None, None, None, None


def head_divergence(
    hidden: Tensor,
    base_hidden: Tensor,
    head: Tensor,
    bias: Tensor | None,
    counted: Tensor,
    *,
    base_head: Tensor | None = None,
    compiled: bool = False,
) -> Tensor:
    """Return KL(base ‖ trained) summed over rows; each distribution is the softmax of its hidden @ headᵀ + bias.

    Args:
        hidden: (n, hidden_size), the trained model's hidden states, any float dtype.
        base_hidden: (n, hidden_size), the base's hidden states at the same positions, same dtype; gets no gradient.
        head: (vocab_size, hidden_size), the trained model's frozen LM head, dtype of `hidden`.
        bias: (vocab_size,) or None.
        counted: (n,) bool; the other rows add nothing.
        base_head: the base's LM head; None if it is `head`.
        compiled: let torch.compile fuse the arithmetic between the matrix products into one kernel.

    Returns:
        Scalar float32 sum in nats; its gradient reaches `hidden` only.
    """
    divergence: Tensor = _HeadDivergence.apply(  # type: ignore[no-untyped-call]
        hidden, base_hidden, head, head if base_head is None else base_head, bias, counted, compiled
    )
    return divergence
