"""Tests of the base's states of windows: bit for bit the same in memory and layer by layer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from aegis.data.kept import fill
from aegis.data.packing import Windows
from aegis.errors import EnvironmentFault
from aegis.model import base_states as module
from aegis.model.base import Base
from aegis.model.base_states import base_states
from aegis.model.load import load_base
from tests.conftest import MakeRandom, Recorder

CPU = torch.device("cpu")
LENGTH = 24


def windows(seed: int = 0) -> Windows:
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, 1000, size).astype(np.int32) for size in (LENGTH, 10, 14, 9, 9)]
    return fill(texts, 3, LENGTH, 0)


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma3_text"])
def test_the_states_of_a_document_do_not_depend_on_its_window(
    make_random: MakeRandom, family: str, tmp_path: Path
) -> None:
    """Documents of a window do not see each other; without their edges they would."""
    folder = make_random(family)
    given = windows()
    found = base_states(Base("tiny", folder, None), given, CPU, tmp_path)
    assert (found.shape, found.dtype) == ((3, LENGTH, 256), torch.float32)
    decoder = load_base(folder, "16bit", CPU).eval().get_decoder()
    ids = torch.from_numpy(given.batch([1]).input_ids)
    with torch.no_grad():
        alone = decoder(input_ids=ids[:, 10:], use_cache=False).last_hidden_state[0]
        together = decoder(input_ids=ids, use_cache=False).last_hidden_state[0, 10:]
    assert torch.allclose(found[1, 10:], alone, atol=1e-4)
    assert not torch.allclose(found[1, 10:], together, atol=1e-2)


@pytest.mark.parametrize(("family", "shards"), [("llama", 3), ("gemma3_text", 1)])
def test_loading_layer_by_layer_gives_the_same_states(
    make_random: MakeRandom,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reporter: Recorder,
    family: str,
    shards: int,
) -> None:
    base = Base("tiny", make_random(family, shards=shards), None)
    wanted = base_states(base, windows(), CPU, tmp_path)
    assert not reporter.messages
    monkeypatch.setattr(module, "fits_16bit", lambda *_: False)
    assert torch.equal(base_states(base, windows(), CPU, tmp_path), wanted)
    assert "layer by layer" in reporter.messages[-1]


def test_states_too_large_for_memory_are_mapped_from_a_file(
    make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They are the same, and no file is left to be seen."""
    base = Base("tiny", make_random("llama"), None)
    wanted = base_states(base, windows(), CPU, tmp_path)
    monkeypatch.setattr(module, "_PART_OF_MEMORY", 10**12)
    spill = tmp_path / "spill"
    found = base_states(base, windows(), CPU, spill)
    assert torch.equal(found, wanted)
    assert spill.is_dir()
    assert not list(spill.iterdir())


def test_states_that_fit_neither_memory_nor_disk_are_refused_before_any_pass(
    make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file that only has the size would end the process at the first page without room, with no message."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def never(*_: object) -> None:
        pytest.fail("a pass was computed")

    monkeypatch.setattr(module, "_PART_OF_MEMORY", 10**12)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(module, "_pass", never)
    with pytest.raises(EnvironmentFault, match="has no room for them") as caught:
        base_states(Base("tiny", make_random("llama"), None), windows(), CPU, tmp_path / "spill")
    assert caught.value.args[0] == "keep.no_room"
    assert "No space left" in caught.value.why
    assert not list((tmp_path / "spill").iterdir())


def test_a_base_that_does_not_fit_in_16_bit_writes_in_nf4(
    make_random: MakeRandom, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    base = Base("tiny", make_random("llama"), None)
    with module.writing_base(base, CPU) as (_, precision):
        assert precision == "16bit"
    monkeypatch.setattr(module, "free_bytes", lambda _: 1 << 20)
    with module.writing_base(base, CPU) as (model, precision):
        assert precision == "4bit"
        assert model.is_loaded_in_4bit
    assert len(reporter.messages) == 1
