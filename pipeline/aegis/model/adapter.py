"""A LoRA adapter at rest, as peft saves it: what merge needs of it, and what merge refuses.

ΔW = scale · B A with A (r, in) and B (out, r); scale = lora_alpha / r, or lora_alpha / √r with rslora
(Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from aegis.errors import IntegrityError, UsageError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# settings that leave the saved matrices the whole truth; any other that is switched on is refused by its name, so
# that a variant of LoRA that is invented tomorrow is not merged wrongly today
_UNDERSTOOD = frozenset({
    "peft_type", "peft_version", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode",
    "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "lora_dropout", "init_lora_weights", "eva_config", "loftq_config",
    "corda_config", "lora_ga_config", "megatron_core", "qalora_group_size",
})  # fmt: skip
_SWITCHED_OFF: tuple[object, ...] = (None, False, "none", [], {})
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class LowRank:
    """One module's A (r, in), B (out, r), float32, and its scale."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Rows [start, stop) of ΔW, float32, in memory of their own or `into` what is given."""
        return torch.mm(self.b[start:stop], self.a, out=into).mul_(self.scale)


@dataclass(frozen=True)
class Adapter:
    """All low-rank updates of an adapter, by the name of the base weight they belong to."""

    folder: Path
    config: Mapping[str, Any]
    updates: Mapping[str, LowRank]


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder and refuse what merge cannot reproduce exactly.

    Raises:
        UsageError: not an adapter folder, or one with features that cannot be merged, by name.
        IntegrityError: damaged, non-finite, or an A without its B.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UsageError(f"{folder} is not an adapter folder", why=f"it has no {missing[0]}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError, RecursionError) as error:
        raise IntegrityError(f"the adapter in {folder} cannot be read", why=str(error)) from None
    if not isinstance(config, dict):
        raise IntegrityError(f"{folder / CONFIG} is not a JSON object")
    _refuse_unsupported(folder, config)

    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise UsageError(f"{folder}: {key} is not a LoRA matrix", why="only lora_A and lora_B can be merged")
        wide = tensor.float()
        if wide.ndim != 2 or not wide.numel():
            raise IntegrityError(f"{folder}: {key} has shape {tuple(wide.shape)}, which is no matrix")
        if not torch.isfinite(wide).all():
            raise IntegrityError(f"{folder}: {key} holds NaN or Inf")
        halves.setdefault(match[1], {})[match[2]] = wide
    updates = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise IntegrityError(f"{folder}: {module} lacks one of lora_A and lora_B, or their ranks differ")
        updates[f"{module}.weight"] = LowRank(pair["A"], pair["B"], _scale(config, module, pair["A"].shape[0]))
    if not updates:
        raise IntegrityError(f"{folder} holds no LoRA matrices")
    return Adapter(folder, config, updates)


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{folder} is a {config.get('peft_type')} adapter", why="only LoRA can be merged")
    for setting, value in config.items():
        if setting not in _UNDERSTOOD and value not in _SWITCHED_OFF:
            raise UsageError(
                f"{folder}: an adapter with {setting} = {value!r} cannot be merged",
                why="its matrices alone do not give the model that was trained",
            )
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise UsageError(
            f"{folder}: initialised with {init!r}, which changes the base weights",
            why="the adapter only fits that changed base",
            fix="convert it with peft's save_pretrained(path_initial_model_for_weight_conversion=…) first",
        )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    configured = _by_pattern(config.get("rank_pattern"), module, config.get("r"))
    if configured != rank:
        raise IntegrityError(f"{module}: lora_A has rank {rank}, {CONFIG} says {configured}")
    alpha = _by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise IntegrityError(f"{CONFIG}: lora_alpha is {alpha!r}")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: object, module: str, default: object) -> object:
    """A value by module name, as peft matches it: the pattern is the name's end, at a dot or the start."""
    if isinstance(patterns, dict):
        for pattern, value in patterns.items():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise IntegrityError(f"{CONFIG}: {pattern!r} is no pattern", why=str(error)) from None
            if matches:
                return value
    return default
