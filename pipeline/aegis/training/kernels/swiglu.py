"""SiLU(gate) · up of an MLP whose gate and up come from one product (Phi-3), with a backward pass that reads each once.

torch.compile writes the gradient of gate and up as one tensor with a choice between two halves, and then reads gate, up
and the outer gradient for both halves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from aegis.training.kernels.patching import with_mixin

torch.library.define("aegis::gated_backward", "(Tensor outer, Tensor gate_up) -> Tensor")


@torch.library.impl("aegis::gated_backward", "cuda")
def _on_gpu(outer: Tensor, gate_up: Tensor) -> Tensor:
    from aegis.training.kernels.swiglu_triton import swiglu_backward

    return swiglu_backward(outer, gate_up)


@torch.library.impl("aegis::gated_backward", "cpu")
def _on_cpu(outer: Tensor, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    share = gate.sigmoid()
    return torch.cat([outer * up * share * (1 + gate * (1 - share)), outer * gate * share], dim=-1)


@torch.library.register_fake("aegis::gated_backward")  # type: ignore[untyped-decorator]
def _shape(_outer: Tensor, gate_up: Tensor) -> Tensor:
    return torch.empty_like(gate_up)


class _SwigluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return up * torch.nn.functional.silu(gate)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Tensor:
        gradient: Tensor = torch.ops.aegis.gated_backward(outer[0], *ctx.saved_tensors)
        return gradient


class _Swiglu:
    """A mixin for an MLP's class: it keeps the two layers and replaces the activation between them."""

    def forward(self: Any, hidden: Tensor) -> Any:
        return self.down_proj(_SwigluProduct.apply(self.gate_up_proj(hidden)))  # type: ignore[no-untyped-call]


def install_swiglu(model: Any) -> None:
    """Mix `_Swiglu` into every MLP of Phi-3's kind; others stay as they are."""
    from transformers.models.phi3.modeling_phi3 import Phi3MLP

    gated = with_mixin(Phi3MLP, _Swiglu)
    for mlp in model.modules():
        if type(mlp) is Phi3MLP and mlp.config.hidden_act == "silu":
            mlp.__class__ = gated
