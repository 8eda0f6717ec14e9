"""Tests of the tools' full-size base: transformers loads it, and merge accepts its adapter and soul."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from full_size import RANK, copy_template, meta_model, write_adapter_and_soul, write_base

from aegis.config.settings import MergeConfig
from aegis.errors import IntegrityError
from aegis.model.base import hash_weights
from aegis.model.lora_targets import coverage, resolve_targets
from aegis.model.shards import ShardSet
from aegis.stages.merge import MergeInputs, merge


@pytest.fixture
def base(tmp_path: Path, quick_base: Path) -> Path:
    folder = tmp_path / "base"
    copy_template(quick_base, folder, layers=1)
    write_base(meta_model(folder), folder)
    return folder


def test_the_base_is_one_that_transformers_loads(base: Path) -> None:
    """Two shards, every tensor there, bf16, one layer as asked, and numbers in it."""
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(base, dtype="auto", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert model.config.num_hidden_layers == 1
    assert model.lm_head.weight.dtype == torch.bfloat16
    assert float(model.lm_head.weight.detach().float().std()) == pytest.approx(0.02, rel=0.05)
    assert len(ShardSet.open(base).files) == 2


def test_merge_takes_adapter_and_soul_and_refuses_those_of_another_base(base: Path, tmp_path: Path) -> None:
    model = meta_model(base)
    targets = resolve_targets(model)
    expected = sum(row.parameters for row in coverage(model, targets, RANK))
    base_hash = hash_weights(ShardSet.open(base))
    assert write_adapter_and_soul(model, targets, tmp_path / "trained", base_hash) == expected
    report = merge(MergeInputs(str(base), tmp_path / "trained"), tmp_path / "merged", MergeConfig())
    assert (report.adapted, round(report.gate, 2)) == (2, 0.83)

    write_adapter_and_soul(meta_model(base), targets, tmp_path / "other", "0" * 64)
    with pytest.raises(IntegrityError, match="not trained on"):
        merge(MergeInputs(str(base), tmp_path / "other"), tmp_path / "never", MergeConfig())
