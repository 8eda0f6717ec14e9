"""Tests of the types that are found before there is a GGUF: the quantizer gives the converted model the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.errors import UnsupportedModelError
from aegis.llama_cpp import convert, find_converter, planned_types, tensor_types
from aegis.model.base import find_base
from aegis.model.shards import HEAD
from aegis.verification.tokenizer_precheck import converted_vocabulary
from tests.conftest import MakeRandom

pytestmark = pytest.mark.usefixtures("forked_tools")

FAMILIES: dict[str, dict[str, Any]] = {
    "phi3": {},
    "llama": {"num_hidden_layers": 8},
    "qwen2": {"hidden_size": 192, "intermediate_size": 320},  # rows that super-blocks do not divide
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_planned_types_are_those_of_the_converted_model(
    family: str, make_random: MakeRandom, tmp_path: Path, shared_cache: Path
) -> None:
    base = find_base(str(make_random(family, tie_word_embeddings=False, **FAMILIES[family])))
    shapes = {name: entry.shape for name, entry in base.shards.entries.items()}
    f16 = tmp_path / "f16.gguf"
    convert(base.folder, f16, model_name=family)
    with converted_vocabulary(base) as vocabulary:
        assert vocabulary is not None
        found = {quant: planned_types(vocabulary, shapes, quant) for quant in ("Q4_K_M", "Q3_K_M", "Q8_0")}
        with_head = planned_types(vocabulary, shapes, "Q4_K_M", output_tensor_type="q8_0")
    for quant, types in found.items():
        wanted = tensor_types(f16, quant)
        assert sorted(types.values()) == sorted(kind for kind in wanted.values() if kind != "F32")
        assert types[HEAD] == wanted["output.weight"]
        assert types["model.embed_tokens.weight"] == wanted["token_embd.weight"]
        assert types["model.layers.1.mlp.down_proj.weight"] == wanted["blk.1.ffn_down.weight"]
    assert found["Q4_K_M"] != found["Q3_K_M"] != found["Q8_0"]
    assert with_head == found["Q4_K_M"] | {HEAD: "Q8_0"}


def test_a_tensor_that_the_converter_renames_by_its_own_rule_is_refused(quick_base: Path, shared_cache: Path) -> None:
    base = find_base(str(quick_base))
    find_converter()
    with converted_vocabulary(base) as vocabulary:
        assert vocabulary is not None
        with pytest.raises(UnsupportedModelError) as caught:
            planned_types(vocabulary, {"model.layers.0.mlp.experts.0.w1.weight": (64, 64)}, "Q4_K_M")
    assert caught.value.key == "tensor_types.no_name"
