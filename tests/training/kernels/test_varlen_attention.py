"""Tests that packed windows without masks have transformers' cosines and attention, where a CPU can show it.

FlashAttention's variable-length kernel needs a GPU: tests/training/test_gpu.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.training.kernels.varlen_attention import RotaryTable, has_tabulable_rope, install_attention, supports_varlen

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 256,
}
LONGROPE = {
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 40,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0 + i / 10 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
    },
}
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}}


def model(model_type: str, **settings: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **(SHAPE | settings))).eval()


@pytest.mark.parametrize("longest", [30, 40, 41, 90])
@pytest.mark.parametrize(("model_type", "settings"), [("phi3", LONGROPE), ("llama", {}), ("llama", YARN)])
def test_the_table_equals_the_rotary_embedding(model_type: str, settings: dict[str, Any], longest: int) -> None:
    """To the bit, on both sides of LongRoPE's switch, which looks at the longest document of the batch."""
    decoder = model(model_type, **settings).get_decoder()
    positions = torch.cat([torch.arange(longest), torch.arange(100 - longest)]).unsqueeze(0)
    hidden = torch.zeros(1, 100, 64)
    table = RotaryTable(decoder.rotary_emb, 100, hidden[:, :1])
    for found, wanted in zip(
        table(hidden, position_ids=positions), decoder.rotary_emb(hidden, position_ids=positions), strict=True
    ):
        assert torch.equal(found, wanted)
    other = table(hidden, position_ids=positions.flip(1))
    assert not torch.equal(other[0], table(hidden, position_ids=positions)[0])


def test_a_table_of_longrope_switches_its_factors_at_the_original_length() -> None:
    """The control: short and long factors differ, so a table of one kind would miss."""
    decoder = model("phi3", **LONGROPE).get_decoder()
    table = RotaryTable(decoder.rotary_emb, 100, torch.zeros(1, 1, 64))
    assert table.switch_at == 40
    below, above = (table(None, position_ids=torch.tensor([[5, last]]))[0][0, 0] for last in (39, 40))
    assert not torch.allclose(below, above)


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
def test_single_documents_need_no_mask(model_type: str) -> None:
    """Windows of one document: the same logits as transformers' own attention, grouped heads too."""
    ids = torch.randint(1, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    settings = {"num_key_value_heads": 2 if model_type == "llama" else 4}
    wanted = model(model_type, **settings)(input_ids=ids).logits
    ours = model(model_type, **settings)
    install_attention(ours)
    assert torch.allclose(ours(input_ids=ids).logits, wanted, atol=1e-5)
    assert not torch.allclose(ours(input_ids=ids.flip(1)).logits, wanted, atol=1e-2)


def test_a_model_that_the_kernel_cannot_serve_is_left_alone() -> None:
    """Dynamic rotary embeddings and CPUs keep transformers' attention."""
    dynamic = model("llama", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert not has_tabulable_rope(dynamic)
    assert has_tabulable_rope(model("llama"))
    assert not supports_varlen(model("llama"), torch.device("cpu"), torch.bfloat16)
