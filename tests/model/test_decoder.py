"""Tests of the decoder: its logits are those of a pass without a cache, eager and as a recorded graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aegis.model import growing_cache
from aegis.model.cuda_graphs import GraphRecorder, own_stream
from aegis.model.decoder import Decoder
from aegis.model.load import load_base
from tests.conftest import MakeRandom

LENGTH, PROMPT = 24, 6
LONG_FACTORS = {"type": "longrope", "long_factor": [4.0] * 32, "short_factor": [1.0] * 32}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "phi3": {"sliding_window": 262144, "rope_scaling": LONG_FACTORS, "original_max_position_embeddings": 64},
    "gemma3_text": {"sliding_window": 16, "head_dim": 64},
}
"""Without a window, with one that is longer than any text (and rotary factors by length), with one that slides."""
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.filterwarnings("ignore::UserWarning"),
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.fixture(scope="module")
def folders(make_random: MakeRandom) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = make_random(name, **MODELS[name])
        return made[name]

    return find


def load(folder: Path, device: str) -> Any:
    return load_base(folder, "16bit", torch.device(device), torch.float32).eval()


def texts(rows: int = 3) -> Tensor:
    return torch.randint(4, 200, (rows, LENGTH), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def step_by_step(model: Any, ids: Tensor, padding: Tensor | None = None, **more: Any) -> Tensor:
    """Return the decoder's logits after each token from the prompt's last one on, (rows, tokens, vocabulary)."""
    device = model.get_output_embeddings().weight.device
    ids, padding = ids.to(device), None if padding is None else padding.to(device)
    with own_stream(device):
        decoder = Decoder(model, len(ids), LENGTH, padding=padding, record=True, **more)
        found = [decoder(ids[:, :PROMPT]).clone()]
        found += [decoder(ids[:, place : place + 1]).clone() for place in range(PROMPT, LENGTH)]
    return torch.stack(found, dim=1).cpu()


@torch.no_grad()
def without_cache(model: Any, ids: Tensor) -> Tensor:
    device = model.get_output_embeddings().weight.device
    logits: Tensor = model(input_ids=ids.to(device), use_cache=False).logits[:, PROMPT - 1 :].cpu()
    return logits


def furthest(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max())


@pytest.mark.parametrize("step", [growing_cache.STEP, 8])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_a_pass_without_a_cache(
    folders: Callable[[str], Path], name: str, device: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where attention reads more of the cache on the way. Control: other texts with the same last tokens."""
    monkeypatch.setattr(growing_cache, "STEP", step)
    model, ids = load(folders(name), device), texts()
    wanted = without_cache(model, ids)
    other = torch.cat([texts()[:, :PROMPT].flip(0), ids[:, PROMPT:]], dim=1)
    assert furthest(step_by_step(model, ids), wanted) < 2e-3
    assert furthest(without_cache(model, other), wanted) > 0.1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_changes_nothing(folders: Callable[[str], Path], name: str, device: str) -> None:
    """Row by row, without its padding. Control: padding that the decoder does not know of."""
    model, ids = load(folders(name), device), texts()
    padding = torch.tensor([0, 2, PROMPT - 1])
    found, unknown = step_by_step(model, ids, padding), step_by_step(model, ids)
    for row, skipped in enumerate(padding.tolist()):
        alone = torch.cat([ids[row : row + 1, skipped:]], dim=1)
        with torch.no_grad():
            passed = model(input_ids=alone.to(model.device), use_cache=False).logits.cpu()
        wanted = passed[0, PROMPT - 1 - skipped :]
        assert furthest(found[row], wanted) < 2e-3
        assert furthest(unknown[row], wanted) > 0.1 or not skipped


def test_attention_reads_the_part_that_is_filled(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By steps of 8 tokens, at most the whole cache. What lies beyond may hold anything. Control: what lies within."""
    monkeypatch.setattr(growing_cache, "STEP", 8)
    read, spoiled = [], {"beyond": 0.0, "within": 0.0}

    class Watched(growing_cache.GrowingCache):
        def update(self, *args: Any, **kwargs: Any) -> Any:
            keys, values = super().update(*args, **kwargs)
            layer: Any = self.layers[0]
            layer.keys[:, :, self.shown :] = layer.values[:, :, self.shown :] = spoiled["beyond"]
            layer.values[:, :, 0] += spoiled["within"]
            read.append(keys.shape[2])
            return keys, values

    monkeypatch.setattr(growing_cache, "GrowingCache", Watched)
    model, ids = load(folders("llama"), "cpu"), texts()
    wanted = step_by_step(model, ids)
    assert read[0] == 8
    assert sorted(set(read)) == [8, 16, 24]
    for place, is_same in (("beyond", True), ("within", False)):
        spoiled[place] = 1e4
        assert torch.equal(step_by_step(model, ids), wanted) is is_same


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    ("name", "step", "passes"),
    [("llama", 24, 3), ("phi3", 24, 3), ("llama", 8, 7), ("gemma3_text", 24, LENGTH - PROMPT + 1)],
)
def test_a_step_is_recorded_unless_a_window_slides(
    folders: Callable[[str], Path], name: str, step: int, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python runs the model for the prompt, and to warm up and record per part of the cache; the rest is replayed."""
    monkeypatch.setattr(growing_cache, "STEP", step)
    model, calls, forward = load(folders(name), "cuda"), [], type(load(folders(name), "cuda")).forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    step_by_step(model, texts())
    assert len(calls) == passes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_cannot_be_recorded_stays_eager(
    folders: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = load(folders("llama"), "cuda"), texts()
    record = GraphRecorder.record

    def waits(self: GraphRecorder, function: Callable[[], object]) -> Callable[[], None]:
        return record(self, lambda: (function(), torch.cuda.current_stream().synchronize()))

    monkeypatch.setattr(GraphRecorder, "record", waits)
    assert furthest(step_by_step(model, ids), without_cache(model, ids)) < 2e-3
