"""The process that all commands of this room are forked from, once per session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness import Laboratory
from tests.made_once import Once


@pytest.fixture(scope="session")
def laboratory(tmp_path_factory: pytest.TempPathFactory, once: Once) -> Iterator[Laboratory]:
    made = Laboratory(tmp_path_factory.mktemp("laboratory"), once)
    yield made
    made.close()
