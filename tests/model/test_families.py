"""Which bases are refused, each by its config.json alone and with a reason a person understands."""

from __future__ import annotations

from typing import Any

import pytest

from aegis.errors import UnsupportedModelError
from aegis.model.families import PROVEN, REFUSED, check_family

PHI = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}


@pytest.mark.parametrize("model_type", sorted(PROVEN))
def test_proven_families_are_taken(model_type: str) -> None:
    check_family({"model_type": model_type, "architectures": ["AnyForCausalLM"]})


def test_code_beside_a_known_family_is_no_reason_to_refuse() -> None:
    """Phi-3.5 and Borea ship it; the native class is used and the code never looked at."""
    check_family(PHI | {"auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}})


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_families_that_lose_their_head(model_type: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_family({"model_type": model_type, "architectures": ["XForCausalLM"]})
    assert model_type in caught.value.what
    assert "head" in caught.value.why.lower()


@pytest.mark.parametrize(
    ("config", "told"),
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
            "no class of its own",
        ),
        ({}, "this model"),
    ],
)
def test_refused_by_name(config: dict[str, Any], told: str) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        check_family(config)
    assert told in str(caught.value)
    assert caught.value.exit_code == 5


def test_an_empty_quantization_config_is_none() -> None:
    check_family(PHI | {"quantization_config": None})
    check_family(PHI | {"quantization_config": {}})
