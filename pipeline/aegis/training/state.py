"""What a training carries from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from aegis.soul.module import Soul
from aegis.training.execution.options import PLAIN, ExecutionOptions
from aegis.training.kernels.lora_layers import LoraLayers


@dataclass(frozen=True)
class TrainState:
    """Everything that changes while training, and how its step is run.

    Attributes:
        model: peft model; its LoRA layers are taken over by `adapters`.
        scaler: of the loss; only float16 needs it, elsewhere it is switched off.
    """

    model: Any
    soul: Soul
    adapters: LoraLayers
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    options: ExecutionOptions = PLAIN

    def parameters(self) -> dict[str, nn.Parameter]:
        """Trainable parameters under names that stay the same from run to run."""
        named = {f"adapter.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        return named | {f"soul.{name}": p for name, p in self.soul.named_parameters()}
