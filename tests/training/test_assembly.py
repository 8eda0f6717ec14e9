"""What putting a training together tells the one who asked for it."""

from __future__ import annotations

from typing import Any

import pytest

from aegis.config import TrainConfig
from aegis.model.base import find_base
from aegis.training.assembly import assembled
from tests.conftest import MakeRandom
from tests.training.conftest import CPU


@pytest.mark.parametrize("asked", ["on", "auto"])
def test_a_recording_that_cannot_be_is_said_where_it_was_asked_for(
    make_random: MakeRandom, reporter: Any, asked: Any
) -> None:
    config = TrainConfig(base_model=str(make_random("phi3")), lora_r=2, device="cpu", cuda_graphs=asked)
    with assembled(config, find_base(config.base_model), CPU, None):
        pass
    assert any("CUDA graphs" in text for text in reporter.warned) == (asked == "on")
