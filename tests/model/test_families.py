"""Tests of refused bases: each is refused by its config.json alone, with an understandable reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.errors import UnsupportedModelError
from aegis.model.families import PROVEN, REFUSED, check_family, check_head_bias, rope_of, unproven_parts

PHI = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}


@pytest.mark.parametrize("model_type", sorted(PROVEN))
def test_proven_families_are_accepted(model_type: str) -> None:
    check_family({"model_type": model_type, "architectures": ["AnyForCausalLM"]})


def test_a_known_family_with_code_beside_it_is_accepted() -> None:
    """Phi-3.5 and Borea have code; the native class is used and the code is never read."""
    check_family(PHI | {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}})


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_families_that_lose_their_head_in_conversion_are_refused(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_family({"model_type": model_type, "architectures": ["XForCausalLM"]})
    assert model_type in caught.value.what
    assert "head" in caught.value.why.lower()


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (PHI | {"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        (PHI | {"_attn_implementation_internal": None}, "_attn_implementation_internal"),
        (PHI | {"quantization_config": {"quant_method": "awq", "bits": 4}}, "already quantized (awq)"),
        (PHI | {"quantization_config": {"quant_method": "gptq"}}, "already quantized (gptq)"),
        (PHI | {"quantization_config": {"bits": 4}}, "already quantized (unknown)"),
        (PHI | {"quantization_config": "odd"}, "already quantized (unknown)"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "not a decoder language model"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "not a decoder language model"),
        ({"model_type": "phi3"}, "no architecture named"),
        ({"model_type": "phi3", "architectures": "Phi3ForCausalLM"}, "not a decoder"),
        ({"model_type": "phi3", "architectures": 3}, "not a decoder"),
        (
            {
                "model_type": "strange",
                "architectures": ["StrangeForCausalLM"],
                "auto_map": {"AutoModelForCausalLM": "modeling_strange.StrangeForCausalLM"},
            },
            "has no class for it",
        ),
        ({}, "this model"),
    ],
)
def test_models_that_cannot_be_reproduced_are_refused_by_name(config: dict[str, Any], shown: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_family(config)
    assert shown in str(caught.value)
    assert caught.value.exit_code == 5


GEMMA = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


@pytest.mark.parametrize(
    "shape",
    [
        {},  # the defaults, of the 1B, 4B and 12B
        {"head_dim": 256, "query_pre_attn_scalar": 256},
        # the 27B, whose scale llama.cpp knows by its depth
        {
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "num_hidden_layers": 62,
            "hidden_size": 5376,
            "num_attention_heads": 32,
        },
    ],
)
def test_gemma_3_as_published_is_accepted(shape: dict[str, Any]) -> None:
    check_family(GEMMA | shape)


def test_a_gemma_3_whose_attention_llama_cpp_scales_otherwise_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="query_pre_attn_scalar is 256 and llama"):
        check_family(GEMMA | {"head_dim": 64})


def families_table() -> str:
    """Return the README's Markdown table of proven families."""
    rows = ["| family | `model_type` | LM head | adapter on | token ids | |", "| --- | --- | --- | --- | --- | --- |"]
    for model_type, family in PROVEN.items():
        targets = ", ".join(f"`{target}`" for target in family.targets)
        cells = (family.name, f"`{model_type}`", ", ".join(family.heads), targets, ", ".join(family.vocabularies))
        rows.append(f"| {' | '.join((*cells, family.remark))} |")
    return "\n".join(rows)


def test_a_biased_head_is_accepted_only_where_llama_cpp_loads_it() -> None:
    check_head_bias({"model_type": "phi"}, ["lm_head.weight", "lm_head.bias"])
    check_head_bias(PHI, ["lm_head.weight", "model.layers.0.self_attn.q_proj.bias"])
    with pytest.raises(UnsupportedModelError, match="an LM head that has a bias") as caught:
        check_head_bias({"model_type": "gptj"}, ["lm_head.weight", "lm_head.bias"])
    assert "output.bias" in caught.value.why


def test_the_readme_has_the_table_of_families() -> None:
    """Word for word, so that what it says is what the tests of proven families cover."""
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert families_table() in readme
    refused = readme[readme.index("Refused before any work") :].partition("\n\n")[0]
    for name in ("Gemma", "Gemma 2", "Cohere", "AWQ", "GPTQ", "bias"):
        assert name in refused


def test_an_empty_quantization_config_counts_as_none() -> None:
    check_family(PHI | {"quantization_config": None})
    check_family(PHI | {"quantization_config": {}})


OWN, TIED = ["lm_head.weight"], ["model.embed_tokens.weight"]
LONG = {"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}}


@pytest.mark.parametrize(
    ("config", "tensors", "vocabulary", "parts"),
    [
        (PHI | LONG, OWN, "SentencePiece", {}),
        # Phi-4-mini: the same model_type, and none of what Phi-3 was proven with
        (
            PHI | LONG | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
            OWN,
            "byte-level BPE",
            {"head": "tied", "tokenizer": "byte-level BPE", "rope": "longrope of a part"},
        ),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, TIED, "byte-level BPE", {}),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}, OWN, "byte-level BPE", {"rope": "yarn"}),
        ({"model_type": "llama", "rope_scaling": None}, OWN, "SentencePiece", {}),
        ({"model_type": "qwen2", "rope_scaling": None}, OWN, "SentencePiece", {"tokenizer": "SentencePiece"}),
        ({"model_type": "mistral"}, OWN, "SentencePiece", {}),
        ({"model_type": "falcon"}, OWN, None, None),
    ],
)
def test_a_base_is_proven_with_head_tokenizer_and_rope(
    config: dict[str, Any], tensors: list[str], vocabulary: Any, parts: dict[str, str] | None
) -> None:
    assert unproven_parts(config, tensors, vocabulary) == parts


def test_the_rope_of_each_kind_of_layer_is_named() -> None:
    layers = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
    assert rope_of({"rope_parameters": layers}) == "linear"
    assert rope_of({"rope_parameters": "odd"}) == "unknown"
