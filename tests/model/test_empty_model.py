"""Tests that an exception of transformers while it builds a base becomes an error with the key of config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.errors import IntegrityError
from aegis.model.base import find_base
from aegis.model.empty_model import empty_model
from aegis.model.load import load_base, nf4_weights
from tests.conftest import MakeRandom

BROKEN: dict[str, Any] = {
    "pad_token_id": 10**6,
    "num_attention_heads": 0,
    "num_hidden_layers": None,
    "hidden_act": "no such function",
    "intermediate_size": "twelve",
    "rope_parameters": {"rope_type": "no such rope", "rope_theta": 10000.0},
    "vocab_size": -1,
}


def change(folder: Path, to: Path, **values: Any) -> Path:
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text(encoding="utf-8"))
    (to / "config.json").write_text(json.dumps(config | values), encoding="utf-8")
    return to


@pytest.mark.parametrize("key", BROKEN)
def test_the_key_that_breaks_config_json_is_named(make_random: MakeRandom, tmp_path: Path, key: str) -> None:
    folder = change(make_random("llama"), tmp_path / "base", **{key: BROKEN[key]})
    with pytest.raises(IntegrityError) as caught:
        empty_model(folder)
    assert caught.value.key == "base.unreadable_config"
    assert f"without {key} = {BROKEN[key]!r}" in caught.value.why


def test_two_broken_keys_are_an_error_that_names_no_key(make_random: MakeRandom, tmp_path: Path) -> None:
    """The control: neither of them alone keeps the model from being built, and no other key is called guilty."""
    whole = make_random("llama")
    assert empty_model(whole).config.vocab_size == empty_model(change(whole, tmp_path / "same")).config.vocab_size
    folder = change(whole, tmp_path / "base", hidden_act="no such function", num_attention_heads=0)
    with pytest.raises(IntegrityError) as caught:
        empty_model(folder)
    assert "it can be built" not in caught.value.why


def test_every_loader_of_a_model_names_the_broken_key(make_random: MakeRandom, tmp_path: Path) -> None:
    folder = change(make_random("llama"), tmp_path / "base", pad_token_id=10**6)
    assert find_base(str(folder)).tied is False
    for way in (lambda: load_base(folder, "16bit", torch.device("cpu")), lambda: nf4_weights(folder)):
        with pytest.raises(IntegrityError) as caught:
            way()
        assert caught.value.key == "base.unreadable_config"
        assert "pad_token_id" in caught.value.why


@pytest.mark.parametrize("error", [AssertionError("inside"), TypeError("inside"), AttributeError("inside")])
def test_an_exception_in_transformers_loader_is_reported_as_an_error_of_the_base(
    quick_base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from transformers import AutoModelForCausalLM

    def fail(*args: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(IntegrityError) as caught:
        load_base(quick_base, "16bit", torch.device("cpu"))
    assert (caught.value.key, caught.value.why) == ("load.not_loaded", "inside")
