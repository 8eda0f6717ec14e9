"""What of a training is left in a quantized file: the trained model with the file's weights, on the same texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.llama_cpp import planned_types
from aegis.merging.merged_weights import counter_scaled, head_entry, merged_shapes
from aegis.merging.shipped_weights import FileRecipe, ShippedWeights
from aegis.model.base import Base
from aegis.model.live_model import live_model, soul_module
from aegis.model.load import compute_dtype, load_base
from aegis.model.rounding import rounded
from aegis.soul.file import SoulRecord, load_soul
from aegis.soul.fold import fold_head
from aegis.verification.tokenizer_precheck import converted_vocabulary


def recipe(base: Base, quant: str, *, is_merged: bool = True) -> FileRecipe:
    """How export makes a file of the base: of the merged one, whose LM head is a tensor of its own, or of the plain."""
    own = {name: entry.shape for name, entry in base.shards.entries.items()}
    shapes = merged_shapes(base) if is_merged else own
    with converted_vocabulary(base) as vocabulary:
        if vocabulary is None:
            raise SystemExit("llama.cpp's converter is not on this machine: run any export first")
        types = planned_types(vocabulary, shapes, quant)
    return FileRecipe(quant, types, torch.float16, counter_scaled(base, counter_scale=True))


def judged(base: Base, adapter: Path, quants: Sequence[str], texts: Any, base_model: Any) -> dict[str, Any]:
    """Measure the files of a finished training."""
    from study.measure import judged_on

    found = {}
    device = base_model.device
    for quant in quants:
        with live_model(base, adapter, "16bit", device) as model:
            soul = soul_module(load_soul(adapter / "soul.safetensors")).to(device)
            ShippedWeights(model, soul, base, recipe(base, quant), compute_dtype(device))
            found[quant] = judged_on(model, texts, base_model)
    return found


@torch.no_grad()
def base_judged(base: Base, quants: Sequence[str], texts: Any, base_model: Any) -> dict[str, Any]:
    """Measure the base's own files."""
    from study.measure import judged_on

    found = {}
    for quant in quants:
        made = recipe(base, quant, is_merged=False)
        model = load_base(base.folder, "16bit", base_model.device).eval()
        for name in made.types:
            weight = model.get_parameter(name)
            weight.data = made.rounded(weight.data.float(), name).to(weight.dtype)
        found[quant] = judged_on(model, texts, base_model)
    return found


@torch.no_grad()
def head_errors(base: Base, soul: SoulRecord) -> dict[str, float]:
    """Return Q6_K's error of the LM head W and of the folded W′, as ‖rounded − exact‖ / ‖exact‖.

    Q6_K has blocks of 256 values. Rows that are no multiple of that, as in SmolLM2, share blocks with the next row.
    """
    head = head_entry(base).read().float()
    heads = {"base": head, "folded": fold_head(head, soul.rotation, soul.gate)}
    return {name: _q6_k_error(weight) for name, weight in heads.items()}


def _q6_k_error(weight: Tensor) -> float:
    blocks = weight.flatten()[: weight.numel() // 256 * 256].view(-1, 256)
    return ((rounded(blocks, "Q6_K") - blocks).norm() / blocks.norm()).item()
