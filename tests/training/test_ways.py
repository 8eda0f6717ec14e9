"""Which neighbours a plan compares, and what "auto" comes to on a GPU of some size."""

from __future__ import annotations

from typing import Any

from aegis.config import TrainConfig
from aegis.training.estimate import Blueprint
from aegis.training.ways import Variant, Ways
from tests.conftest import MakeRandom


def test_a_gpus_memory_decides_what_is_recomputed(make_random: MakeRandom) -> None:
    """ "auto" recomputes as many layers as it takes, and no more; the other settings are what they say."""
    folder = make_random("phi3", num_hidden_layers=8)

    def own(setting: Any, free_bytes: int) -> Variant:
        config = TrainConfig(base_model=str(folder), activation_checkpointing=setting, max_length=512)
        return next(Ways(Blueprint(folder, config), config, "cuda", free_bytes).all())

    plenty = 10**12
    for setting, free, recomputed in (("auto", plenty, 0), ("auto", 1, 8), ("on", plenty, 8), ("off", 1, 0)):
        assert own(setting, free).recomputed == recomputed, setting
    assert own("offload", plenty).offloaded
    kept, least = own("auto", plenty).memory.peak, own("auto", 1).memory.peak
    between = own("auto", int((kept + least) / 2 / 0.9))
    assert between.recomputed in (4, 5)
    assert least < between.memory.peak <= (kept + least) / 2
