"""Reads a LoRA adapter as peft saves it, and refuses what merge cannot reproduce exactly.

ΔW = scale · B A with A (r, in) and B (out, r); scale = lora_alpha / r, or lora_alpha / √r with rslora
(Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aegis.errors import IntegrityError, UsageError
from aegis.limits import read_json
from aegis.model.adapter_patterns import values_of
from aegis.model.shards import read_header

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."

# with these settings, the saved matrices alone define the update. Any other setting that is switched on is refused, so
# that an unknown variant of LoRA is not merged wrongly
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
    """One module's update: A (r, in) and B (out, r) in float32, and their scale."""

    a: Tensor
    b: Tensor
    scale: float

    def delta(self, start: int, stop: int, into: Tensor | None = None) -> Tensor:
        """Return rows [start, stop) of ΔW in float32, in new memory or `into` a given tensor."""
        return torch.mm(self.b[start:stop], self.a, out=into).mul_(self.scale)


@dataclass(frozen=True)
class Adapter:
    """All low-rank updates of an adapter, by the name of the base weight that each belongs to."""

    folder: Path
    config: Mapping[str, Any]
    updates: Mapping[str, LowRank]


def load_adapter(folder: Path) -> Adapter:
    """Read an adapter folder and refuse what merge cannot reproduce exactly.

    Raises:
        UsageError: it is not an adapter folder, or has a feature that cannot be merged; the message names it.
        IntegrityError: it is damaged, a value is not finite, or an A has no B.
    """
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise UsageError("adapter.no_folder", folder=folder, missing=missing[0])
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise IntegrityError("adapter.unreadable", folder=folder, error=str(error)) from None
    if not isinstance(config, dict):
        raise IntegrityError("adapter.not_an_object", path=folder / CONFIG)
    _refuse_unsupported(folder, config)

    halves: dict[str, dict[str, Tensor]] = {}
    for entry in read_header(folder / WEIGHTS):
        key = entry.name
        match = re.fullmatch(re.escape(_PREFIX) + r"(.+)\.lora_([AB])\.weight", key)
        if match is None:
            raise UsageError("adapter.not_a_lora_matrix", folder=folder, key=key)
        if len(entry.shape) != 2 or not entry.bytes or not entry.dtype.is_floating_point:
            raise IntegrityError(
                "adapter.not_a_matrix", folder=folder, key=key, wide_shape=entry.shape, dtype=entry.dtype
            )
        wide = entry.read().float()
        # with numpy: for hundreds of small matrices, torch's threads would mostly wait for each other
        if not np.isfinite(wide.numpy()).all():
            raise IntegrityError("adapter.holds_nan_inf", folder=folder, key=key)
        halves.setdefault(match[1], {})[match[2]] = wide
    ranks, alphas = (values_of(config.get(name), halves, CONFIG) for name in ("rank_pattern", "alpha_pattern"))
    updates = {}
    for module, pair in halves.items():
        if set(pair) != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise IntegrityError("adapter.half_a_pair", folder=folder, module=module)
        rank = pair["A"].shape[0]
        if (configured := ranks.get(module, config.get("r"))) != rank:
            raise IntegrityError("adapter.rank", module=module, rank=rank, config=CONFIG, configured=configured)
        scale = _scale(config, alphas.get(module, config.get("lora_alpha")), rank)
        updates[f"{module}.weight"] = LowRank(pair["A"], pair["B"], scale)
    if not updates:
        raise IntegrityError("adapter.no_matrices", folder=folder)
    return Adapter(folder, config, updates)


def _refuse_unsupported(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise UsageError("adapter.other_kind", folder=folder, peft_type=config.get("peft_type"))
    for setting, value in config.items():
        if setting not in _UNDERSTOOD and value not in _SWITCHED_OFF:
            raise UsageError("adapter.cannot_be_merged", folder=folder, setting=setting, value=value)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise UsageError("adapter.changed_base", folder=folder, init=init)


def _scale(config: Mapping[str, Any], alpha: object, rank: int) -> float:
    try:
        scale = float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        scale = math.nan
    if isinstance(alpha, bool | str) or not abs(scale) <= torch.finfo(torch.float32).max:
        raise IntegrityError("adapter.lora_alpha", config=CONFIG, alpha=alpha)
    return scale
