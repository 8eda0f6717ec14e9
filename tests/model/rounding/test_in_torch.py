"""Tests of the rules in torch, on the CPU."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from aegis.model.rounding.in_torch import TORCH_TYPES, round_in_torch
from tests.model.rounding.cases import by_llama_cpp, cases, equal_share, is_as_near

CASES = cases(rows=40)
SAME_SUMS = platform.machine() in ("x86_64", "AMD64")
"""Elsewhere llama.cpp's compiler contracts a product and a sum into one operation."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("type_name", TORCH_TYPES)
def test_torch_rounds_as_llama_cpp_does(type_name: str, case: str) -> None:
    """Every value is equal on x86-64, the error within 1 % anywhere; with scales 1 % off only zeros are equal."""
    values = CASES[case]
    theirs, found = by_llama_cpp(values, type_name), round_in_torch(values, type_name)
    assert is_as_near(found, theirs, values)
    assert equal_share(found, theirs) >= (1 if SAME_SUMS else 0.9)
    assert equal_share(found * 1.01, theirs) <= (theirs == 0).double().mean() + 0.05


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_another_type_is_not_as_near(type_name: str) -> None:
    values = CASES["normal"]
    theirs = by_llama_cpp(values, type_name)
    assert not any(
        is_as_near(round_in_torch(values, other), theirs, values) for other in TORCH_TYPES if other != type_name
    )


@pytest.mark.parametrize("type_name", TORCH_TYPES)
def test_torch_rounds_a_real_weight_as_llama_cpp_does(real_base: Path, type_name: str) -> None:
    """Every value of a quarter of SmolLM2's first down projection is equal on x86-64."""
    with safe_open(real_base / "model.safetensors", "pt") as file:
        values = file.get_tensor("model.layers.0.mlp.down_proj.weight")[:144].float()
    theirs, found = by_llama_cpp(values, type_name), round_in_torch(values, type_name)
    assert is_as_near(found, theirs, values)
    assert equal_share(found, theirs) >= (1 if SAME_SUMS else 0.9)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that is cut into slabs has the values of one that is not; the last slab is shorter."""
    values = CASES["heavy tails"]
    whole = round_in_torch(values, "Q4_K")
    monkeypatch.setattr("aegis.model.rounding.in_torch._SLAB", 7 * 256)
    assert torch.equal(round_in_torch(values, "Q4_K"), whole)


def test_a_transposed_weight_is_rounded_by_its_own_rows() -> None:
    values = CASES["normal"][:32, :256].T
    assert torch.equal(round_in_torch(values, "Q4_0"), round_in_torch(values.contiguous(), "Q4_0"))
