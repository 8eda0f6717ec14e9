"""Decoder layers compiled by torch.compile, with a say in what they keep for the backward pass.

Left to itself the compiler keeps what the forward pass has made anyway, normed inputs and dropout masks among it, which
are cheap to work out again from the rest: at Phi-3.5-mini's shape 102 KB a token and layer for 70. A recomputed layer
keeps its input, and attention's result if it is told to: of all that a layer makes, that costs most to make again for
its size, the more so the longer the window. Its backward pass works out again only what it needs: not the last matrix
product, which a plain second forward pass would do in vain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

_KEEP_LESS = dict.fromkeys(
    (
        "ban_recompute_reductions",
        "ban_recompute_used_far_apart",
        "ban_recompute_long_fusible_chains",
        "ban_recompute_materialized_backward",
    ),
    False,
)
"""The partitioner's objections to working things out again; its cut through the graph stays the cheapest in bytes."""

_ATTENTION = (
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
)
"""What `model.packed` comes down to, by device and by whether a window holds several documents."""


def compile_layer(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a decoder layer's class's forward; one compilation serves all its layers of fixed shape."""
    return torch.compile(forward, dynamic=False, backend=_keeping_less)


def compile_recomputed_layer(forward: Callable[..., Tensor], *, keep_attention: bool = False) -> Callable[..., Tensor]:
    """As `compile_layer`, of layers that keep their input alone, or attention's result besides."""
    kept = _attention_operators() if keep_attention else []
    # its advice about operations in place, which a decoder layer has none of
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

    def again(layer: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = checkpoint(
            forward,
            layer,
            hidden,
            *args,
            use_reentrant=False,
            # dropout repeats by itself (`model.dropout`)
            preserve_rng_state=False,
            context_fn=partial(create_selective_checkpoint_contexts, kept),
            **kwargs,
        )
        return output

    return torch.compile(again, dynamic=False)


def _keeping_less(graph: Any, inputs: Any) -> Any:
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    with config.patch(_KEEP_LESS):
        return compile_fx(graph, inputs)


def _attention_operators() -> list[Any]:
    from torch.nn.attention import varlen  # noqa: F401  registers its operator

    named = (name.split("::") for name in _ATTENTION)
    packets = (getattr(getattr(torch.ops, space), operator, None) for space, operator in named)
    return [packet.default for packet in packets if packet is not None]
