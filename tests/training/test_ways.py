"""Which neighbours a plan compares, and what "auto" comes to on a GPU of some size."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

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


def test_what_is_offloaded_takes_the_hosts_memory(make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch) -> None:
    """An input a layer, and of compiled layers attention's result too where the host has room: as much here.

    Pieces are powers of two.
    """
    folder = make_random("phi3", num_hidden_layers=8)

    def taken(length: int = 512, available: int = 2**40, **settings: Any) -> int:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
        config = TrainConfig(base_model=str(folder), max_length=length, **settings)
        return next(Ways(Blueprint(folder, config), config, "cuda", 10**12).all()).host_bytes

    text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    piece = 512 * text["hidden_size"] * 2
    assert piece.bit_count() == 1
    offload: dict[str, Any] = {"activation_checkpointing": "offload"}
    assert taken(**offload, compile="off") == 8 * piece
    assert taken(**offload, compile="on") == 16 * piece
    assert taken(**offload, compile="on", available=20 * piece) == 8 * piece
    assert taken(600, **offload, compile="off") == 16 * piece
    assert taken(activation_checkpointing="on") == 0


def test_a_base_that_is_split_is_shown_in_several_processes(make_random: MakeRandom) -> None:
    """All layers recomputed and none compiled, as it is trained; what each process holds falls with their number."""
    folder = make_random("phi3", num_hidden_layers=8)

    def ways(**settings: Any) -> Ways:
        config = TrainConfig(base_model=str(folder), max_length=512, **settings)
        return Ways(Blueprint(folder, config), config, "cuda", 10**12)

    split, whole = ways(split_base=True), next(ways(activation_checkpointing="on", compile="off").all())
    variants = list(split.all())
    assert not split.compiled
    assert [(way.processes, way.recomputed, way.asked_for) for way in variants] == [(n, 8, True) for n in (2, 3, 4, 8)]
    for way in variants:
        assert way.held is not None
        assert way.memory.weights == way.held.part + way.held.layers + way.held.whole
        # nothing else is shared between them
        assert way.memory.peak - way.memory.weights == whole.memory.peak - whole.memory.weights
    parts = [way.held.part for way in variants if way.held is not None]
    assert parts == sorted(parts, reverse=True)
    assert whole.memory.weights - variants[0].memory.weights == parts[0] - variants[0].held.layers
    lighter = next(ways(split_base=True, activation_checkpointing="offload").all())
    assert lighter.memory.weights == sum(vars(lighter.held).values()) < variants[0].memory.weights
