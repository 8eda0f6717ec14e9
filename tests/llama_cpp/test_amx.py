"""Tests that a llama.cpp compiled for AMX loads no weights for it, and that another one is unchanged."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from llama_cpp import llama_cpp as binding

from aegis.llama_cpp import amx


@pytest.mark.parametrize("there", [True, False])
def test_weights_are_repacked_only_without_amx(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # the binding's own may have been replaced already, by a model that was loaded in this process
    monkeypatch.setattr(binding, "llama_model_default_params", lambda: SimpleNamespace(use_extra_bufts=True))
    monkeypatch.setattr(amx, "has_amx", lambda: there)
    amx.keep_from_amx.__wrapped__()
    assert binding.llama_model_default_params().use_extra_bufts is not there
