"""Tests that a llama.cpp compiled for AMX repacks no weights; another one does, unless it is asked not to."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
from llama_cpp import llama_cpp as binding

from aegis.llama_cpp import repacking
from aegis.llama_cpp.repacking import as_in_the_file


@pytest.mark.parametrize("there", [True, False])
def test_weights_are_repacked_only_without_amx(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # the binding's own may have been replaced already, by a model that was loaded in this process
    monkeypatch.setattr(binding, "llama_model_default_params", lambda: SimpleNamespace(use_extra_bufts=True))
    monkeypatch.setattr(repacking, "has_amx", lambda: there)
    repacking.keep_from_amx.__wrapped__()
    assert binding.llama_model_default_params().use_extra_bufts is not there


@pytest.mark.parametrize("there", [True, False])
def test_weights_stay_as_they_are_while_the_block_runs(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the block has the first model of a process; with AMX, they stay so after it."""
    monkeypatch.setattr(binding, "llama_model_default_params", lambda: SimpleNamespace(use_extra_bufts=True))
    monkeypatch.setattr(repacking, "has_amx", lambda: there)
    monkeypatch.setattr(repacking, "keep_from_amx", cache(repacking.keep_from_amx.__wrapped__))
    with as_in_the_file():
        repacking.keep_from_amx()
        assert not binding.llama_model_default_params().use_extra_bufts
    repacking.keep_from_amx()
    assert binding.llama_model_default_params().use_extra_bufts is not there
