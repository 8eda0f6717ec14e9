"""Tests that a server without its packages names the command that installs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from aegis.chat.serving import serve
from aegis.errors import EnvironmentFault


def test_missing_packages_of_the_server_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sse_starlette" else find(name))
    with pytest.raises(EnvironmentFault) as raised:
        serve(Path("absent.gguf"), port=0, context=128)
    assert "sse_starlette" in raised.value.why
    assert raised.value.fix.endswith("-m pip install 'llama-cpp-python[server]==0.3.36'")
    assert raised.value.exit_code == 3
