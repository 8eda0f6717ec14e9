"""Tests that plain peft and plain transformers read a run's files without AEGIS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aegis.config.settings import MergeConfig, TrainConfig
from aegis.model.adapter import load_adapter
from aegis.model.base import find_base
from aegis.model.live import live_model
from aegis.runs.run import Run
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from tests.trained import tokens_for


@pytest.fixture(scope="module")
def run(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Train a few large steps, so that adapter and soul change the output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AEGIS_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        run = Run(tmp_path_factory.mktemp("plain") / "run")
        short = {
            "max_steps": 6,
            "keep_windows": 8,
            "warmup_steps": 1,
            "annealing_steps": 2,
            "save_steps": 6,
            "max_length": 64,
        }
        train(TrainConfig(base_model=str(quick_base), device="cpu", learning_rate=2e-2, **short), run)
        merge(MergeInputs.from_run(run), run.merged, MergeConfig())
        yield run


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=tokens).logits


def test_plain_peft_reads_the_adapter(run: Run, quick_base: Path) -> None:
    """PeftModel.from_pretrained on adapter/: the base with BA added to its weights, without the soul."""
    from peft import PeftModel

    base, added = plain(quick_base), plain(quick_base)
    weights = dict(added.named_parameters())
    with torch.no_grad():
        for name, update in load_adapter(run.adapter).updates.items():
            weights[name] += update.delta(0, len(weights[name]))
    tokens = tokens_for(base)
    before = logits(base, tokens)
    found = logits(PeftModel.from_pretrained(base, str(run.adapter)).eval(), tokens)
    assert (found - logits(added, tokens)).abs().max() < 1e-3
    assert (found - before).abs().max() > 0.1


def test_plain_transformers_reads_the_merged_folder(run: Run, quick_base: Path) -> None:
    """Its own class and the base's tokenizer; the logits of the live soul; the base's are others."""
    from transformers import AutoTokenizer

    merged = plain(run.merged)
    assert type(merged).__module__.startswith("transformers.")
    tokens = tokens_for(merged)
    with live_model(find_base(str(quick_base)), run.adapter, "16bit", torch.device("cpu"), torch.float32) as live:
        wanted = logits(live, tokens)
    difference = (logits(merged, tokens) - wanted).abs().max()
    assert difference < 0.02 * (logits(plain(quick_base), tokens) - wanted).abs().max()
    tokenizer, ours = AutoTokenizer.from_pretrained(run.merged), AutoTokenizer.from_pretrained(quick_base)
    assert tokenizer("日本の春は桜です。").input_ids == ours("日本の春は桜です。").input_ids
