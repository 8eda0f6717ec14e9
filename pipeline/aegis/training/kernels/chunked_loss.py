"""The LM head and its cross-entropy, in chunks of rows: the logits of all rows never exist at the same time.

At 4096 tokens and a vocabulary of 32,064 the logits and their gradient are 2 GB in float32. Here they exist for one
chunk of rows at a time, and rows that are not trained have none. The head is frozen and only the hidden states need a
gradient, so the forward pass computes it while it has the chunk's logits (the idea of Wijmans et al. 2024,
arXiv:2411.09009, and of Liger, arXiv:2410.10989, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.data.packing import IGNORED
from aegis.training.kernels.head_chunks import compile_once, head_chunks, scaled_gradient


def _errors(logits: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return a chunk's summed cross-entropy, and softmax(logits) − onehot(targets) in `dtype`; zero where IGNORED."""
    wide = logits.float()
    if bias is not None:
        wide = wide + bias.float()
    log_norm = wide.logsumexp(-1, keepdim=True)
    trained = (targets != IGNORED).unsqueeze(-1)
    wanted = targets.clamp(min=0).unsqueeze(-1)
    loss = torch.where(trained, log_norm - wide.gather(-1, wanted), 0.0).sum()
    places = torch.arange(wide.shape[-1], device=wide.device)
    error = torch.where(trained, (wide - log_norm).exp() - (places == wanted).float(), 0.0)
    return loss, error.to(dtype)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, compiled: bool) -> Tensor:
        errors = compile_once(_errors) if compiled else _errors
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in head_chunks(hidden, head):
            loss, error = errors(hidden[rows] @ head.T, bias, targets[rows], head.dtype)
            total += loss
            if gradient is not None:
                torch.mm(error, head, out=gradient[rows])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return scaled_gradient(ctx, outer[0]), None, None, None, None


def head_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, *, compiled: bool = False) -> Tensor:
    """Return the summed cross-entropy of `targets` under the logits hidden @ headᵀ + bias.

    Args:
        hidden: (n, hidden_size), the rows whose next token is trained, any float dtype.
        head: (vocab_size, hidden_size), the frozen LM head, dtype of `hidden`.
        bias: (vocab_size,) or None.
        targets: (n,) int64 token ids; rows with IGNORED add nothing.
        compiled: let torch.compile fuse the arithmetic between the two matrix products into one kernel.

    Returns:
        Scalar float32 sum in nats; divide by the number of targets of the whole optimizer step. Its gradient
        reaches `hidden` only.
    """
    loss: Tensor = _HeadLoss.apply(hidden, head, bias, targets, compiled)  # type: ignore[no-untyped-call]
    return loss
