"""The training state: everything that a step reads and changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aegis.merging.shipped_weights import ShippedWeights
from aegis.soul.module import Soul
from aegis.training.execution.options import PLAIN, ExecutionOptions
from aegis.training.kernels.lora_layers import LoraLayers


@dataclass
class TrainState:
    """What changes while training, and the options that a step runs with.

    Attributes:
        model: the peft model.
        adapters: its LoRA layers, with training's own forward pass.
        scaler: the loss scaler; it is enabled for float16 only.
        shipped: the weights of the finish; None before it begins.
        rounded_for: the `trained_tensors` for which `shipped` was rounded, where later steps use it too; else None.
    """

    model: Any
    soul: Soul
    adapters: LoraLayers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    options: ExecutionOptions = PLAIN
    shipped: ShippedWeights | None = None
    rounded_for: dict[str, Tensor] | None = None

    @property
    def base_head(self) -> Tensor:
        """The base's LM head, (vocab_size, hidden_size)."""
        weight: Tensor = self.model.get_output_embeddings().weight
        return weight if self.shipped is None else self.shipped.base_head

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of adapter and soul, under names that are the same in every run."""
        named = {f"adapter.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        return named | {f"soul.{name}": p for name, p in self.soul.named_parameters()}

    def trained_tensors(self) -> dict[str, Tensor]:
        """Return all that a step can change of adapter and soul; the start of a dense rotation follows its skew."""
        return {**self.parameters(), "soul.start": self.soul.start}
