"""peft's LoRA layers with training's own forward pass: products in the base's dtype, from float32 masters.

For a float32 adapter, peft casts every activation to float32 and the product back; at 512 tokens this costs more than
the adapter's own matrix products. Here the small matrices are cast instead, once per step. Masters, their gradients and
the optimizer stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from aegis.training.kernels.dropout import DropoutRate
from aegis.training.kernels.lora_products import Down, Up
from aegis.training.kernels.nf4_linear import Nf4Linear
from aegis.training.kernels.patching import with_mixin

_ADAPTER = "default"


class _Adapted:
    """A mixin for a peft LoRA layer's class: it replaces the forward pass and keeps the parameters."""

    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.lora_A[_ADAPTER].weight, self.lora_B[_ADAPTER].weight
        inner = Down.apply(x, a, self.aegis_a, self.aegis_seed, self.aegis_threshold, self.aegis_amplify)  # type: ignore[no-untyped-call]
        up = b, self.aegis_b, self.scaling[_ADAPTER]
        if isinstance(self.base_layer, Nf4Linear):
            return self.base_layer.with_low_rank(x, inner, *up)
        return Up.apply(self.base_layer(x), inner, *up)  # type: ignore[no-untyped-call]


class LoraLayers:
    """All LoRA layers of a peft model, with the forward pass of this module.

    Args:
        model: from `model.lora_targets.attach_lora`; its parameters and their names stay peft's.
        dtype: the dtype that the products are computed in.
        rate: the dropout rate before A.
    """

    def __init__(self, model: Any, dtype: torch.dtype, rate: float) -> None:
        from peft.tuners.lora import LoraLayer

        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        device = self._layers[0].lora_A[_ADAPTER].weight.device
        self.dropout = DropoutRate(rate, device)
        self.seeds = torch.zeros(len(self._layers), dtype=torch.int32, device=device)
        """One seed per layer, set before each forward pass that needs a new dropout mask."""
        self._masters: list[Tensor] = []
        self._low: list[Tensor] = []
        for number, layer in enumerate(self._layers):
            layer.__class__ = with_mixin(type(layer), _Adapted)  # type: ignore[arg-type]
            layer.aegis_a = self._in_dtype(layer.lora_A[_ADAPTER].weight, dtype)
            layer.aegis_b = self._in_dtype(layer.lora_B[_ADAPTER].weight, dtype)
            layer.aegis_seed = self.seeds[number]
            layer.aegis_threshold, layer.aegis_amplify = self.dropout.threshold, self.dropout.amplify

    def __len__(self) -> int:
        return len(self._layers)

    def _in_dtype(self, master: Tensor, dtype: torch.dtype) -> Tensor:
        if master.dtype == dtype:
            return master.detach()
        low = master.detach().to(dtype)
        self._masters.append(master.detach())
        self._low.append(low)
        return low

    def cast(self) -> None:
        """Cast the masters again; the caller does this after every optimizer step."""
        if self._low:
            torch._foreach_copy_(self._low, self._masters)

    @contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Use the adapters' current values, without dropout, while the block runs."""
        self.cast()
        self.dropout.switch(on=False)
        try:
            yield
        finally:
            self.dropout.switch(on=True)

    def set_seeds(self, seeds: Sequence[int]) -> None:
        """Set each layer's dropout seed for the forward passes that follow."""
        host = torch.tensor(seeds, dtype=torch.int32)
        if self.seeds.is_cuda:
            host = host.pin_memory()
        self.seeds.copy_(host, non_blocking=True)
