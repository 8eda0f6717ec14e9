"""Tests of reading an adapter: the update equals peft's, and every unknown setting is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from aegis.errors import IntegrityError, UsageError
from aegis.model.adapter import CONFIG, WEIGHTS, load_adapter
from aegis.model.adapter_patterns import values_of

MODULE = "model.layers.0.self_attn.o_proj"
A = f"base_model.model.{MODULE}.lora_A.weight"
B = f"base_model.model.{MODULE}.lora_B.weight"


def tensors(rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {A: torch.randn(rank, 6, generator=generator), B: torch.randn(4, rank, generator=generator)}


def write(folder: Path, weights: dict[str, Tensor], **config: Any) -> Path:
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["o_proj"]}
    (folder / CONFIG).write_text(json.dumps(settings | config))
    save_file(weights, folder / WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 8 / 2),
        ({"lora_alpha": 3.5}, 3.5 / 2),
        ({"use_rslora": True}, 8 / math.sqrt(2)),
        ({"alpha_pattern": {"o_proj": 32}}, 32 / 2),
        ({"alpha_pattern": {"proj": 32}}, 8 / 2),
        ({"alpha_pattern": {r"layers\.\d+\.self_attn\.o_proj": 32}}, 32 / 2),
        ({"r": 9, "rank_pattern": {"self_attn.o_proj": 2}}, 8 / 2),
    ],
)
def test_the_update_is_scale_times_b_times_a(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    weights = tensors()
    adapter = load_adapter(write(tmp_path, weights, **settings))
    (name, update), *rest = adapter.updates.items()
    assert (name, rest) == (f"{MODULE}.weight", [])
    wanted = scale * weights[B] @ weights[A]
    assert torch.allclose(update.delta(0, 4), wanted, atol=1e-6)
    assert torch.allclose(update.delta(1, 3), wanted[1:3], atol=1e-6)
    assert not torch.allclose(update.delta(0, 2), wanted[2:4], atol=1e-3)


def test_half_precision_is_widened(tmp_path: Path) -> None:
    adapter = load_adapter(write(tmp_path, {name: tensor.half() for name, tensor in tensors().items()}))
    assert next(iter(adapter.updates.values())).delta(0, 4).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({A: None}, "lacks one of"),
        ({B: None}, "lacks one of"),
        ({B: torch.zeros(4, 3)}, "ranks differ"),
        ({A: torch.zeros(3, 6), B: torch.zeros(4, 3)}, "lora_A has rank 3, adapter_config.json says 2"),
        ({A: torch.zeros(2)}, "not a matrix"),
        ({A: torch.tensor(1.0)}, "not a matrix"),
        ({B: torch.zeros(4, 2, 1)}, "not a matrix"),
        ({A: torch.zeros(0, 6), B: torch.zeros(4, 0)}, "not a matrix"),
        ({A: torch.full((2, 6), torch.nan)}, "NaN or Inf"),
        ({B: torch.full((4, 2), torch.inf)}, "NaN or Inf"),
        ({A: None, B: None}, "holds no LoRA matrices"),
        ({A: torch.ones(2, 6, dtype=torch.complex64)}, "has dtype C64"),
        ({A: torch.ones(2, 6).to(torch.float8_e8m0fnu)}, "has dtype F8_E8M0"),
        ({A: torch.ones(2, 6, dtype=torch.int64)}, "not a matrix of real numbers"),
    ],
)
def test_bad_matrices_are_refused(tmp_path: Path, change: dict[str, Tensor | None], shown: str) -> None:
    weights = {name: tensor for name, tensor in (tensors() | change).items() if tensor is not None}
    with pytest.raises(IntegrityError) as caught:
        load_adapter(write(tmp_path, weights))
    assert shown in str(caught.value)
    assert str(tmp_path) in str(caught.value) or MODULE in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": None},
        {"lora_alpha": "8"},
        {"lora_alpha": True},
        {"lora_alpha": float("inf")},
        {"r": None},
        {"rank_pattern": {"(": 2}},
        {"lora_alpha": 10**400},
        {"lora_alpha": 1e39},
        {"lora_alpha": -1e300},
        {"alpha_pattern": {"o_proj": 10**400}},
        {"rank_pattern": {f"a{number}|o_proj": 2 for number in range(1000)}},
        {"rank_pattern": {"(?=o_proj)o_proj": 2}},
        {"rank_pattern": {"\ud800[a]": 2}},
    ],
)
def test_bad_ranks_and_alphas_are_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(IntegrityError, match=CONFIG):
        load_adapter(write(tmp_path, tensors(), **config))


ENDLESS = [r"(\w+\w+)+!", "(a|a|[a-z_.0-9]+)*$!", "(.*)*x" * 5, "([a-z]+)*[a-z]+[0-9]+", "(((.+)+)+)+~"]


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_hostile_pattern_is_matched_in_linear_time(tmp_path: Path, pattern: str) -> None:
    """RE2's time is linear in the name's length; Python's engine would take 2^n steps for these."""
    module = f"model.layers.0.{'a' * 4000}.o_proj"
    weights = {f"base_model.model.{module}.lora_{name[-8]}.weight": tensor for name, tensor in tensors().items()}
    adapter = load_adapter(write(tmp_path, weights, rank_pattern={pattern: 3}, alpha_pattern={pattern: 9}))
    assert adapter.updates[f"{module}.weight"].scale == 8 / 2


@pytest.mark.parametrize(
    "patterns",
    [
        {"o_proj": 1, "self_attn.o_proj": 2},
        {"self_attn.o_proj": 2, "o_proj": 1},
        {"proj": 1, "attn.o_proj": 2, "o_proj": 3},
        {r".*\.o_proj": 4, "o_proj": 1},
        {"o_proj": 1, r".*\.o_proj": 4},
        {r"layers\.[1-9]\..*": 4, r"layers\.0\..*o_proj": 5},
        {"q_proj|o_proj": 6},
        {MODULE: 7, "": 8},
        {"": 8},
        {"o_pro[j]": 9},
    ],
)
def test_the_pattern_that_counts_is_the_one_that_peft_takes(patterns: dict[str, int]) -> None:
    from peft.utils.other import get_pattern_key

    wanted = patterns.get(get_pattern_key(patterns.keys(), MODULE))
    assert values_of(patterns, [MODULE], CONFIG).get(MODULE) == wanted


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.lm_head.weight",
        f"base_model.model.{MODULE}.lora_magnitude_vector",
        f"base_model.model.{MODULE}.lora_A.bias",
        f"{MODULE}.lora_A.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
    ],
)
def test_other_tensors_are_refused_by_name(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_adapter(write(tmp_path, tensors() | {key: torch.zeros(2, 2)}))
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        {"use_dora": True},
        {"bias": "lora_only"},
        {"modules_to_save": ["lm_head"]},
        {"target_parameters": ["x"]},
        {"layer_replication": [[0, 1]]},
        {"alora_invocation_tokens": [1]},
        {"invented_in_2031": 1},
        {"peft_type": "IA3"},
        {"peft_type": None},
        {"init_lora_weights": "PiSSA"},
        {"init_lora_weights": "olora"},
    ],
)
def test_a_setting_that_the_matrices_do_not_show_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        load_adapter(write(tmp_path, tensors(), **config))
    value = next(iter(config.values()))
    assert next(iter(config)) in str(caught.value) or str(value) in str(caught.value)


def test_unknown_settings_that_are_switched_off_are_accepted(tmp_path: Path) -> None:
    load_adapter(write(tmp_path, tensors(), use_dora=False, bias="none", modules_to_save=None, invented_in_2031={}))


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=CONFIG):
        load_adapter(tmp_path)
    write(tmp_path, tensors())
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UsageError, match=WEIGHTS):
        load_adapter(tmp_path)


@pytest.mark.parametrize(
    ("name", "data"),
    [(CONFIG, b""), (CONFIG, b"[]"), (CONFIG, b"\xff"), (CONFIG, b"[" * 100_000), (WEIGHTS, b""), (WEIGHTS, b"x" * 99)],
)
def test_damaged_files_of_an_adapter_are_refused(tmp_path: Path, name: str, data: bytes) -> None:
    write(tmp_path, tensors())
    (tmp_path / name).write_bytes(data)
    with pytest.raises(IntegrityError):
        load_adapter(tmp_path)


def test_a_truncated_adapter_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, tensors()) / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="not a complete safetensors file"):
        load_adapter(tmp_path)
