"""Tests of the adapted modules: every attention projection, by the family's names, with their number."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.errors import UsageError
from aegis.model.lora_targets import attach_lora, coverage, resolve_targets
from tests.training.conftest import phi35_config

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


def on_meta(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def family(model_type: str) -> Any:
    from transformers import AutoConfig

    return on_meta(AutoConfig.for_model(model_type, **SMALL))


@pytest.mark.parametrize(
    ("model_type", "targets"),
    [
        ("phi3", ("qkv_proj", "o_proj")),
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("mistral", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("qwen2", ("q_proj", "k_proj", "v_proj", "o_proj")),
    ],
)
def test_the_attention_projections_are_found_by_the_familys_own_names(
    model_type: str, targets: tuple[str, ...]
) -> None:
    model = family(model_type)
    assert resolve_targets(model) == targets
    rows = coverage(model, targets, rank=4)
    assert [row.modules for row in rows] == [3] * len(targets)
    wanted = sum(4 * (m.in_features + m.out_features) for n, m in model.named_modules() if n.endswith(targets))
    assert sum(row.parameters for row in rows) == wanted > 0


def test_all_linear_names_every_linear_module_but_the_head() -> None:
    model = family("llama")
    wanted = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(resolve_targets(model, ["all-linear"])) == wanted
    with pytest.raises(UsageError):
        resolve_targets(model, ["all-linear", "q_proj"])


def test_coverage_counts_the_parameters_that_peft_trains() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("phi3", **SMALL))
    targets = resolve_targets(model, ["qkv_proj", "down_proj"])
    rows = coverage(model, targets, rank=5)
    model.requires_grad_(False)
    wrapped = attach_lora(model, targets, rank=5, alpha=10, dropout=0.1, base_name="owner/name", revision="abc")
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == sum(row.parameters for row in rows)
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    config = wrapped.peft_config["default"]
    assert (config.base_model_name_or_path, config.revision) == ("owner/name", "abc")
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (5, 10, 0.1, "none")
    assert rows[0].target == "qkv_proj"


def test_names_that_match_nothing_are_all_named() -> None:
    """The usual four on a fused family: peft would adapt a third of the attention and say nothing."""
    with pytest.raises(UsageError) as caught:
        resolve_targets(family("phi3"), ["q_proj", "k_proj", "v_proj", "o_proj"])
    assert caught.value.what == "no linear module is called q_proj, k_proj, v_proj"
    assert "qkv_proj" in caught.value.why
    assert "--lora-targets" in caught.value.fix


def test_the_head_and_the_norms_are_refused_as_targets() -> None:
    for name in ("lm_head", "embed_tokens", "norm", ""):
        with pytest.raises(UsageError, match="no linear module"):
            resolve_targets(family("llama"), [name])


def test_unknown_attention_projections_are_an_error_that_lists_the_modules() -> None:
    with pytest.raises(UsageError, match="not known by name") as caught:
        resolve_targets(family("gpt_neox"))
    assert "query_key_value" in caught.value.why
    assert resolve_targets(family("gpt_neox"), ["query_key_value"]) == ("query_key_value",)


@pytest.fixture(scope="module")
def phi35() -> Any:
    return on_meta(phi35_config())


def test_an_adapter_of_rank_16_on_phi_35_has_its_known_number_of_parameters(phi35: Any) -> None:
    """The whole attention of the real geometry is 9,437,184 parameters, 128 more modules' worth than o_proj's third."""
    rows = coverage(phi35, resolve_targets(phi35), rank=16)
    assert sum(row.parameters for row in rows) == 9_437_184
    assert {row.target: (row.modules, row.in_features, row.out_features) for row in rows} == {
        "qkv_proj": (32, 3072, 9216),
        "o_proj": (32, 3072, 3072),
    }
    assert {row.target: row.parameters for row in rows}["o_proj"] == 3_145_728
    assert sum(p.numel() for p in phi35.parameters()) == 3_821_079_552


def test_the_originals_targets_are_refused_on_phi_35(phi35: Any) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_targets(phi35, ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert caught.value.what == "no linear module is called q_proj, k_proj, v_proj"
