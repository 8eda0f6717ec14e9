"""Tests of `rounded` on the CPU, where llama.cpp rounds."""

from __future__ import annotations

import pytest
import torch

from aegis.model.rounding import rounded
from tests.model.rounding.cases import by_llama_cpp

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")


def weight(rows: int = 5, columns: int = 512) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) * 0.02


@pytest.mark.parametrize("type_name", TYPES)
def test_a_cpu_gives_the_values_that_llama_cpp_gives(type_name: str) -> None:
    """To the bit, in one thread or several; a row's values depend on that row only, and another type's differ."""
    values = weight(1200, 1024)
    found = rounded(values, type_name)
    assert torch.equal(found, by_llama_cpp(values, type_name))
    assert torch.equal(rounded(values[7:9], type_name), found[7:9])
    assert not torch.equal(rounded(values, "Q8_0" if type_name != "Q8_0" else "Q6_K"), found)


def test_rounding_has_no_gradient_and_leaves_the_weight_as_it_is() -> None:
    values = weight().requires_grad_()
    before = values.detach().clone()
    assert not rounded(values, "Q6_K").requires_grad
    assert torch.equal(values, before)


def test_a_type_that_needs_an_importance_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="IQ2_XXS"):
        rounded(weight(), "IQ2_XXS")
