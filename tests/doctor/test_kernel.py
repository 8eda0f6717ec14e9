"""Tests of the 4-bit check: it passes with the installed library, and fails if a number is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bitsandbytes
import pytest
import torch

from aegis.doctor import kernel
from aegis.doctor.cures import install


def test_the_installed_bitsandbytes_passes() -> None:
    compile_ = torch.compile
    (found,) = kernel.smoke()
    assert found.state == "ok", found
    assert "NF4 off by 9" in found.detail
    assert torch.compile is compile_


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda tensor: tensor * 1.5, id="scaled"),
        pytest.param(lambda tensor: tensor.flip(0), id="rows in another order"),
        pytest.param(torch.zeros_like, id="zeros"),
        pytest.param(lambda tensor: tensor * float("nan"), id="nan"),
    ],
)
def test_a_kernel_with_wrong_results_is_reported(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Controls: numbers that a broken dequantization would give."""
    right: Any = bitsandbytes.functional.dequantize_4bit
    monkeypatch.setattr(bitsandbytes.functional, "dequantize_4bit", lambda *given: spoil(right(*given)))
    (found,) = kernel.smoke()
    assert (found.state, found.cure) == ("fail", install("bitsandbytes", again=True)), found


def test_a_library_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def unloadable(*_: object, **__: object) -> None:
        raise RuntimeError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(bitsandbytes.functional, "quantize_4bit", unloadable)
    (found,) = kernel.smoke()
    assert (found.state, "libcudart.so.13" in found.detail) == ("fail", True)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "find_spec", lambda _: None)
    (found,) = kernel.smoke()
    assert (found.state, "bitsandbytes is missing" in found.detail) == ("fail", True)
    assert found.cure == install("bitsandbytes")
