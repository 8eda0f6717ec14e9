"""The LM head and its loss, without ever holding all the logits.

At 4096 tokens and a vocabulary of 32,064 the logits and their gradient are 2 GB in float32; here they exist for one
chunk of rows at a time, and not at all where nothing is trained. The head is frozen, so the gradient of the hidden
states is all that is needed, and it is formed in the forward pass while the chunk's logits are there
(the idea of Wijmans et al. 2024, arXiv:2411.09009, and of Liger, arXiv:2410.10989, in plain torch).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_BYTES = 64 << 20
"""Float32 logits held at a time."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        rows = max(1, CHUNK_BYTES // (4 * head.shape[0]))
        for start in range(0, hidden.shape[0], rows):
            piece = slice(start, start + rows)
            logits = (hidden[piece] @ head.T).float()
            if bias is not None:
                logits += bias.float()
            log_norm = logits.logsumexp(-1, keepdim=True)
            wanted = targets[piece].unsqueeze(-1)
            total += (log_norm - logits.gather(-1, wanted)).sum()
            if gradient is not None:
                error = logits.sub_(log_norm).exp_()
                error.scatter_add_(-1, wanted, torch.full_like(wanted, -1, dtype=error.dtype))
                gradient[piece] = error.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (None if gradient is None else gradient * outer[0].to(gradient.dtype)), None, None, None


def head_loss(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum of cross-entropies of `targets` under the logits hidden @ headᵀ + bias.

    Args:
        hidden: (n, hidden_size), the rows whose next token is trained, any float dtype.
        head: the frozen LM head, (vocab_size, hidden_size), dtype of `hidden`.
        bias: (vocab_size,) or None.
        targets: (n,) int64 token ids.

    Returns:
        Scalar float32 sum in nats; divide by the number of targets of the whole optimizer step. Its gradient
        reaches `hidden` only.
    """
    loss: Tensor = _HeadLoss.apply(hidden, head, bias, targets)  # type: ignore[no-untyped-call]
    return loss
