"""What the tests of a running server share: its model, and the packages that it needs."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from tests.llama_cpp.conftest import make_model

__all__ = ["make_model"]


@pytest.fixture(scope="module")
def gguf(quick_gguf: Path) -> Path:
    """Return a model whose answers are complete characters for any decoder."""
    return quick_gguf


def require_packages(*names: str) -> None:
    """Skip the test if a package is missing; in CI that is a failure, because CI installs all of them."""
    if any(importlib.util.find_spec(name) is None for name in names):
        assert os.environ.get("CI") != "true", "CI installs the dev extra"
        pytest.skip(f"needs the dev extra: {', '.join(names)}")
