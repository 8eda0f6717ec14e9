"""Folds a soul into an LM head and a final norm, which then need no soul.

The soul acts between the final norm and the LM head, where nothing else reads the hidden state:

    logits = W · c(h + g·R h) + b = W (I + gR) · (c h) + b,    c = 1/(1 + g), or 1 without counter-scale.

So the head becomes W (I + gR), and c goes into the norm that computes h: both are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aegis.errors import IntegrityError


def fold_head(head: Tensor, rotation: Tensor, gate: float | Tensor) -> Tensor:
    """Return W′ = W (I + gR), the head that computes from h what W computes from h + g·R h.

    logits = W (h + g·R h) = W (I + gR) h. This holds because the soul comes after the final norm, and only the head
    comes after the soul; the head's bias, if any, does not change. R multiplies column vectors here
    (thought = F.linear(h, R)); with h @ R the same fold would need Rᵀ.

    Args:
        head: W, any rows of the LM head, (rows, hidden_size), any float dtype.
        rotation: R as (hidden_size/n, n, n) blocks, float32 or float64; the computation is in this dtype.
        gate: g; a scalar tensor keeps it on the device.

    Returns:
        W′, (rows, hidden_size) in the rotation's dtype. The caller casts once.

    Raises:
        IntegrityError: the hidden sizes differ.
    """
    blocks, n, _ = rotation.shape
    if head.shape[-1] != blocks * n:
        raise IntegrityError("soul.other_width", blocks=blocks * n, head_shape=head.shape[-1])
    wide = head.to(rotation.dtype)
    if isinstance(gate, Tensor):
        return wide + gate * _times(wide, rotation)
    if blocks == 1:
        return torch.addmm(wide, wide, rotation[0], alpha=gate)
    return wide.add(_times(wide, rotation), alpha=gate)


def unfold_head(folded: Tensor, rotation: Tensor, gate: Tensor) -> Tensor:
    """Return W = W′ (I + gR)⁻¹, the head that computes from h + g·R h what W′ computes from h.

    I + gR has an inverse for every 0 < g < 1, because R only turns.

    Args:
        folded: W′, any rows, (rows, hidden_size) in the rotation's dtype.
        rotation: R as in `fold_head`.
        gate: g, a scalar.

    Returns:
        W, (rows, hidden_size) in the rotation's dtype.
    """
    whole = torch.eye(rotation.shape[-1], dtype=rotation.dtype, device=rotation.device) + gate * rotation
    # without a check of the result, which would make the host wait for the device
    return _times(folded, torch.linalg.inv_ex(whole).inverse)


def _times(head: Tensor, blocks: Tensor) -> Tensor:
    """Return head · M for a block-diagonal M, (blocks, n, n)."""
    if len(blocks) == 1:
        return head @ blocks[0]
    parts = head.unflatten(-1, blocks.shape[:2])
    return torch.einsum("rnj,nji->rni", parts, blocks).flatten(-2)


def counter_scale(gate: float) -> float:
    """Return c = 1/(1 + g), which keeps (h + g·R h)·c at the size of h for a rotation near the identity."""
    return 1 / (1 + gate)


def scale_norm(values: Tensor, scale: float, offset: float) -> Tensor:
    """Return the values of a final norm whose output is `scale` times as large.

    A norm computes x̂·(w + o) + b, where the offset o is 0, or 1 for Gemma's RMSNorm. Its weight becomes
    (w + o)·c − o, and its bias, which has no offset, b·c.

    Args:
        values: w or b, (hidden_size,), float32 or float64; the computation is in this dtype.
        scale: c.
        offset: o; 0 for a bias.

    Returns:
        (hidden_size,) in the dtype of `values`. The caller casts once.
    """
    return (values + offset) * scale - offset
