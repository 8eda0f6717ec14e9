"""Tests that plain peft and plain transformers read a run's files without AEGIS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aegis.model.adapter import load_adapter
from aegis.model.base import find_base
from aegis.model.live_model import made_live
from aegis.model.load import load_base
from aegis.runs.run import Run
from tests.trained import tokens_for


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_plain_peft_reads_the_adapter(finished_run: Run, quick_base: Path) -> None:
    """PeftModel.from_pretrained on adapter/: the base with BA added to its weights, without the soul."""
    from peft import PeftModel

    base, added = plain(quick_base), plain(quick_base)
    weights = dict(added.named_parameters())
    with torch.no_grad():
        for name, update in load_adapter(finished_run.adapter).updates.items():
            weights[name] += update.delta(0, len(weights[name]))
    tokens = tokens_for(base)
    before = logits(base, tokens)
    found = logits(PeftModel.from_pretrained(base, str(finished_run.adapter)).eval(), tokens)
    assert (found - logits(added, tokens)).abs().max() < 1e-3
    assert (found - before).abs().max() > 0.1


def test_plain_transformers_reads_the_merged_folder(finished_run: Run, quick_base: Path) -> None:
    """Its own class and the base's tokenizer; the logits of the live soul; the base's are others."""
    from transformers import AutoTokenizer

    merged = plain(finished_run.merged)
    assert type(merged).__module__.startswith("transformers.")
    tokens = tokens_for(merged)
    base = find_base(str(quick_base))
    plain_base = load_base(base.folder, "16bit", torch.device("cpu"), torch.float32)
    with made_live(plain_base, base, finished_run.adapter) as live:
        wanted = logits(live, tokens)
    difference = (logits(merged, tokens) - wanted).abs().max()
    assert difference < 0.02 * (logits(plain(quick_base), tokens) - wanted).abs().max()
    tokenizer, ours = AutoTokenizer.from_pretrained(finished_run.merged), AutoTokenizer.from_pretrained(quick_base)
    assert tokenizer("日本の春は桜です。").input_ids == ours("日本の春は桜です。").input_ids
