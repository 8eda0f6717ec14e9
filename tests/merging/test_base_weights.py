"""Tests that exactly the weights that a loaded model has in NF4 make the round trip, in every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aegis.model.base import find_base
from aegis.model.load import load_base, nf4_weights
from tests.conftest import MakeRandom

FAMILIES = {
    "phi3": {},
    "llama": {},
    "mistral": {},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 64},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_names_of_nf4_weights_are_those_of_the_loaded_model(make_random: MakeRandom, family: str) -> None:
    """… and of tensors of the shards; neither the LM head nor embeddings, norms or biases are among them."""
    from bitsandbytes.nn import Params4bit

    folder: Path = make_random(family, **FAMILIES[family])
    model = load_base(folder, "4bit", torch.device("cpu"))
    held = {name for name, parameter in model.named_parameters() if isinstance(parameter, Params4bit)}
    found = nf4_weights(folder)
    assert found == held
    assert found <= find_base(str(folder)).shards.entries.keys()
    assert "lm_head.weight" not in found
