"""Decoder layers compiled by torch.compile, with a say in what they keep for the backward pass.

Left to itself the compiler keeps what the forward pass has made anyway, normed inputs and dropout masks among it, which
are cheap to work out again from the rest: at Phi-3.5-mini's shape 102 KB a token and layer for 70. A recomputed layer
keeps its input alone, and its backward pass works out again only what it needs: not the last matrix product, which a
plain second forward pass would do in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def compile_layer(forward: Callable[..., Tensor], *, recomputed: bool) -> Callable[..., Tensor]:
    """Compile a decoder layer's class's forward; one compilation serves all its layers of fixed shape.

    Args:
        recomputed: keep the layer's inputs only.
    """
    # two constant functions, since the compiler tells backends apart by identity
    return torch.compile(forward, dynamic=False, backend=_recomputing if recomputed else _keeping)


def _keeping(graph: Any, inputs: Any) -> Any:
    return _compile(graph, inputs, _KEEP_LESS)


def _recomputing(graph: Any, inputs: Any) -> Any:
    return _compile(graph, inputs, {"activation_memory_budget": 0.0})


def _compile(graph: Any, inputs: Any, settings: dict[str, Any]) -> Any:
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    with config.patch(settings):
        return compile_fx(graph, inputs)
