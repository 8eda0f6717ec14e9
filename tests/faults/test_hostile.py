"""Tests a few hundred hostile inputs with a fixed seed; `python tools/sweep_hostile.py` takes thousands."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.faults import hostile
from tests.faults.harness import Laboratory

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.filterwarnings("ignore"),  # libraries warn of what they read; here it is meant to be odd
]
CASES = {"chat templates": 25, "data rows": 25, "model configs": 25, "plan": 25, "tokenizers": 25}
_NAMES = (
    "safetensors headers",
    "safetensors indexes",
    "soul files",
    "adapters",
    "run manifests",
    "TOML",
    "environment",
    "data rows",
    "chat templates",
    "model configs",
    "plan",
    "tokenizers",
    "soul.pt",
    "GGUF headers",
    "archives",
    "requests to serve",
)


@pytest.fixture(scope="module")
def targets(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, hostile.Target]:
    run = laboratory.start("verify") / "run"
    (gguf,) = (run / "gguf").glob("*Q8_0.gguf")
    made = hostile.targets(laboratory.base, gguf, tmp_path_factory.mktemp("honest"))
    return {target.name: target for target in made}


def test_every_parser_has_a_fuzz_target(targets: dict[str, hostile.Target]) -> None:
    assert tuple(targets) == _NAMES


@pytest.mark.parametrize("name", _NAMES)
def test_hostile_input_is_refused_or_harmless(targets: dict[str, hostile.Target], name: str, tmp_path: Path) -> None:
    target = targets[name]

    @settings(
        max_examples=CASES.get(name, 50), derandomize=True, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.cases)
    def feed(case: object) -> None:
        assert hostile.watch(target, case, tmp_path).fault == ""

    feed()
    assert not list(tmp_path.rglob("pwned"))


def test_the_watch_notices_every_kind_of_fault(tmp_path: Path) -> None:
    """The control: an exception, a slow parser, one that takes much memory and one that writes elsewhere are found."""

    def greedy(_case: object, _place: Path) -> None:
        assert len(bytearray(b"x") * (500 << 20)) == 500 << 20

    def slow(_case: object, _place: Path) -> None:
        ends = time.process_time() + 0.1
        while time.process_time() < ends:
            pass

    def fault(feed: Callable[[Any, Path], object], seconds: float = hostile.MOST_SECONDS) -> str:
        return hostile.watch(hostile.Target("x", st.none(), feed, seconds=seconds), None, tmp_path).fault

    assert fault(lambda _case, _place: [][0]).startswith("IndexError")
    assert "wrote ['elsewhere']" in fault(lambda _case, place: (place.parent / "elsewhere").touch())
    assert fault(lambda _case, place: (place / "inside").touch()) == ""
    assert "MB more" in fault(greedy)
    assert fault(slow, seconds=0.05).endswith(" s")
