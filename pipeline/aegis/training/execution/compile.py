"""Compiles decoder layers with torch.compile and decides what they keep for the backward pass.

By default the compiler keeps what the forward pass has computed anyway, for example normed inputs and dropout masks,
which are cheap to recompute: at Phi-3.5-mini's shape 102 KB per token and layer instead of 70. A checkpointed layer
keeps its input and, with `keep_attention`, attention's result: of all that a layer computes, that costs most to
recompute for its size, and more so in longer windows. The backward pass of a compiled checkpointed layer recomputes
only what it needs. It skips the last matrix product, which a plain second forward pass would compute for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from aegis.training.kernels.compiler_options import REPEATABLE

_KEEP_LESS = dict.fromkeys(
    (
        "ban_recompute_reductions",
        "ban_recompute_used_far_apart",
        "ban_recompute_long_fusible_chains",
        "ban_recompute_materialized_backward",
    ),
    False,
)
"""The partitioner's rules against recomputation, off; its cut through the graph is still the cheapest in bytes."""

_ATTENTION = (
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
)
"""The operators that attention ends in, by device and by whether a window holds several documents."""


def compile_layer(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile the forward of a decoder layer's class; one compilation serves all its layers of one shape."""
    return torch.compile(forward, dynamic=False, backend=_keeping_less)


def compile_checkpointed_layer(
    forward: Callable[..., Tensor], *, keep_attention: bool = False
) -> Callable[..., Tensor]:
    """Compile like `compile_layer`, for layers that keep only their input, or also attention's result."""
    kept = _attention_operators() if keep_attention else []
    # it warns about in-place operations, and a decoder layer has none
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)

    def recomputing(layer: Any, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = checkpoint(
            forward,
            layer,
            hidden,
            *args,
            use_reentrant=False,
            # dropout repeats by itself (`kernels.dropout`)
            preserve_rng_state=False,
            context_fn=partial(create_selective_checkpoint_contexts, kept),
            **kwargs,
        )
        return output

    return torch.compile(recomputing, dynamic=False, options=REPEATABLE)


def _keeping_less(graph: Any, inputs: Any) -> Any:
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    with config.patch(_KEEP_LESS):
        return compile_fx(graph, inputs, config_patches=REPEATABLE)


def _attention_operators() -> list[Any]:
    from torch.nn.attention import varlen  # noqa: F401  registers its operator

    named = (name.split("::") for name in _ATTENTION)
    packets = (getattr(getattr(torch.ops, space), operator, None) for space, operator in named)
    return [packet.default for packet in packets if packet is not None]
