"""Attention and rotary embedding for packed windows, without reading a value from the GPU.

For packed documents transformers reads the positions on the host, to build a mask and to choose LongRoPE's factors.
Both make the GPU wait at every step, and neither can be captured in a CUDA graph. Here the kernel gets the edges of the
documents (torch's variable-length form of FlashAttention), and cosines and sines come from a table.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

NAME = "aegis_packed"
_TABLED = frozenset({"default", "linear", "llama3", "yarn", "longrope", "proportional"})
"""Rotary embeddings whose value depends on the position only and, for longrope, on whether it exceeds one length."""
_VARLEN_ASKS_FOR_GQA = torch.__version__ >= (2, 12)  # type: ignore[operator]
"""Whether grouped heads need an argument; the kernels before accept them without. Asking the kernel itself would import
torch's compiler, which takes more than a second."""


def supports_varlen(model: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `model` can use this module: it needs FlashAttention (sm_80 or newer, 16 bit) and a known rotary type."""
    config = model.config.get_text_config()
    kernels = (
        device.type == "cuda"
        and torch.cuda.get_device_capability(device)[0] >= 8
        and torch.backends.cuda.is_flash_attention_available()
        and dtype in (torch.bfloat16, torch.float16)
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        kernels
        and width <= 256
        and width % 8 == 0
        and getattr(config, "attn_logit_softcapping", None) is None
        and has_tabulable_rope(model)
    )


def has_tabulable_rope(model: Any) -> bool:
    """Whether the decoder has one rotary embedding, and a table can hold it."""
    kind = getattr(getattr(model.get_decoder(), "rotary_emb", None), "rope_type", None)
    return isinstance(kind, str) and kind in _TABLED


def install_attention(model: Any) -> None:
    """Make `model` attend within documents only, given their edges.

    The decoder then takes `cu_seq_lens_q` ((documents + 1,) int32, edges in the flattened windows) and `max_length_q`
    (tokens of the longest document); without them every window is one document.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attend)
    model.set_attn_implementation(NAME)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **_more: Any,
) -> tuple[Tensor, None]:
    """Attend; query is (batch, heads, length, width), the result (batch, length, heads, width).

    Key and value may have fewer heads.
    """
    batch, _, length, _ = query.shape
    # where queries, keys and values come from one product, a view of it would keep all three for the backward pass
    value = value.transpose(1, 2).contiguous().transpose(1, 2)
    windowed = sliding_window is not None and sliding_window < (max_length_q or length)
    if cu_seq_lens_q is None and not windowed:
        mixed = nn.functional.scaled_dot_product_attention(
            query, key, value, scale=scaling, is_causal=True, enable_gqa=key.shape[1] != query.shape[1]
        )
        return mixed.transpose(1, 2), None
    if cu_seq_lens_q is None:
        cu_seq_lens_q = torch.arange(0, batch * length + 1, length, dtype=torch.int32, device=query.device)
    longest = max_length_q or length
    query, key, value = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
    left = sliding_window - 1 if windowed and sliding_window is not None else -1
    mixed = _by_documents(query, key, value, cu_seq_lens_q, longest, scaling, (left, 0))
    return mixed.unflatten(0, (batch, length)), None


def _by_documents(
    query: Tensor, key: Tensor, value: Tensor, edges: Tensor, longest: int, scale: float | None, window: tuple[int, int]
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    more: dict[str, Any] = {}
    if key.shape[1] != query.shape[1] and _VARLEN_ASKS_FOR_GQA:
        more["enable_gqa"] = True
    mixed = varlen_attn(query, key, value, edges, edges, longest, longest, scale=scale, window_size=window, **more)
    assert isinstance(mixed, Tensor)
    return mixed


class RotaryTable(nn.Module):
    """A rotary embedding that looks its values up by position; they equal those of `rotary`.

    Args:
        rotary: the decoder's own module.
        length: the table holds positions 0 to length − 1.
        like: a tensor with the hidden state's dtype and device.
    """

    def __init__(self, rotary: Any, length: int, like: Tensor) -> None:
        super().__init__()
        original = length
        if rotary.rope_type == "longrope":
            original = min(length, rotary.config.rope_parameters["original_max_position_embeddings"])
        self.switch_at = original if original < length else None
        positions = torch.arange(length, device=like.device).unsqueeze(0)
        whole = rotary(like, positions)
        self.long = [part[0].clone() for part in whole]
        if self.switch_at is not None:
            # a batch without a position beyond the original length uses the short factors for every token
            short = rotary(like, positions[:, :original])
            self.short = [torch.cat([s[0], far[original:]]) for s, far in zip(short, self.long, strict=True)]

    def forward(self, _hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each of shape position_ids.shape + (rotary width,)."""
        cos, sin = (part[position_ids] for part in self.long)
        if self.switch_at is not None:
            beyond = position_ids.max() >= self.switch_at
            cos, sin = (
                torch.where(beyond, far, part[position_ids]) for far, part in zip((cos, sin), self.short, strict=True)
            )
        return cos, sin
