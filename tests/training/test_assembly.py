"""What putting a training together tells the one who asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from aegis.config import TrainConfig
from aegis.model.base import find_base
from aegis.training import assembly
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


def test_processes_share_the_cores_while_each_quantizes_its_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun leaves each of them one thread, and has it back afterwards; whoever was given more keeps them."""
    before = torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    try:
        for given, used in ((1, 3), (4, 4)):
            torch.set_num_threads(given)
            with assembly._share_of_cores():
                assert torch.get_num_threads() == used
            assert torch.get_num_threads() == given
    finally:
        torch.set_num_threads(before)
