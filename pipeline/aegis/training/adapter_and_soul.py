"""Puts the adapter and the soul on a base: the one place for training, for the memory estimate and for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from aegis.config.train_settings import TrainConfig
from aegis.model.lora_targets import Coverage, attach_lora, coverage, resolve_targets
from aegis.soul.module import Soul
from aegis.training.kernels.lora_layers import LoraLayers


class Assembly(NamedTuple):
    """A base with its adapter, and the soul beside it; `soul_hook` connects the two.

    Attributes:
        model: the peft model.
        lora_layers: its LoRA layers, with training's own forward pass.
        coverage: the modules that have an adapter, by target.
    """

    model: Any
    lora_layers: LoraLayers
    soul: Soul
    coverage: list[Coverage]


def assemble(
    base: Any,
    config: TrainConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    base_name: str = "",
    revision: str | None = None,
    place: Callable[[Any], object] | None = None,
) -> Assembly:
    """Attach a new adapter to `base` and make a new soul; both start from `config.seed`.

    Args:
        base: a frozen transformers …ForCausalLM; it is changed in place.
        device: where the soul goes; the adapter goes where the base's layers are.
        dtype: the dtype that the adapter's products are computed in; adapter and soul have float32 parameters.
        base_name, revision: the base's name and its commit on the Hub, for the adapter's config.
        place: called with the peft model before anything depends on where its parameters are.

    Raises:
        UsageError: a configured target matches no module.
    """
    targets = resolve_targets(base, config.lora_targets)
    covered = coverage(base, targets, config.lora_r)
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = attach_lora(
            base,
            targets,
            rank=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            base_name=base_name,
            revision=revision,
        )
    if place is not None:
        place(model)
    lora_layers = LoraLayers(model, dtype, config.lora_dropout)
    soul = Soul(
        model.config.get_text_config().hidden_size,
        kind=config.rotation,
        init=config.rotation_init,
        map_=config.rotation_map,
        seed=config.seed,
        alpha=config.alpha_start,
        alpha_is_learned=config.alpha != "scheduled",
        counter_scale=config.counter_scale,
    ).to(device)
    return Assembly(model, lora_layers, soul, covered)
