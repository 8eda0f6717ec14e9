"""The whole way for every family called proven: live adapter and soul against the f16 GGUF in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from aegis.config import MergeConfig
from aegis.llama_cpp import Runtime, convert
from aegis.model.families import PROVEN
from aegis.model.shards import HEAD, ShardSet
from aegis.proof import divergence
from aegis.proof.divergence import Divergence, Recording
from aegis.soul.fold import fold_head
from aegis.stages.merge import MergeInputs, merge
from tests.conftest import MakeRandom
from tests.stages.conftest import MakeTrained, Trained

FAMILIES = ("phi3", "llama", "llama tied", "mistral")


@pytest.fixture(scope="module")
def bases(quick_base: Path, make_random: MakeRandom) -> dict[str, Path]:
    return {
        "phi3": quick_base,
        "llama": make_random("llama"),
        "llama tied": make_random("llama", tie_word_embeddings=True),
        "mistral": make_random("mistral", sliding_window=None),
    }


def sequences(trained: Trained) -> list[list[int]]:
    draw = torch.randint(3, trained.model.config.vocab_size - 70, (3, 80), generator=torch.Generator().manual_seed(2))
    return [row.tolist() for row in draw]


def live(trained: Trained, work: Path) -> Recording:
    outputs = (trained.logits(torch.tensor([row]))[0].numpy() for row in sequences(trained))
    return divergence.record(work / "live.npy", outputs, sequences(trained))


def against(reference: Recording, trained: Trained, folder: Path, work: Path) -> Divergence:
    """Convert a merged folder, run it in llama.cpp, and compare with the live model."""
    gguf = work / f"{folder.name}.gguf"
    convert(folder, gguf, model_name="tiny phi-3")

    def outputs(runtime: Runtime) -> Iterator[np.ndarray]:
        for row in sequences(trained):
            yield runtime.logits(row)

    with Runtime(gguf, n_ctx=128, threads=1, logits=True) as runtime:
        recording = divergence.record(work / f"{folder.name}.npy", outputs(runtime), sequences(trained))
    return divergence.compare(reference, recording)


def with_head(merged: Path, head: torch.Tensor) -> None:
    tensors = load_file(merged / "model.safetensors")
    tensors[HEAD] = head.half().contiguous()
    save_file(tensors, merged / "model.safetensors", metadata={"format": "pt"})


def test_every_proven_family_is_here() -> None:
    assert {family.split()[0] for family in FAMILIES} == PROVEN


@pytest.mark.parametrize("family", FAMILIES)
def test_live_soul_against_f16_gguf(
    tmp_path: Path, bases: dict[str, Path], make_trained: MakeTrained, family: str
) -> None:
    """KL ≤ 1e-4 and the same likeliest token in ≥ 99.5 %; the unfolded head and Rᵀ miss by orders of magnitude."""
    trained = make_trained(bases[family])
    reference = live(trained, tmp_path)
    report = merge(MergeInputs(str(bases[family]), trained.adapter), tmp_path / "merged", MergeConfig())
    found = against(reference, trained, tmp_path / "merged", tmp_path)
    assert found.mean_kl <= 1e-4, found
    assert found.top1 >= 0.995, found

    source = trained.model.get_output_embeddings().weight.detach()
    rotation = trained.soul.rotation()
    for wrong in (source, fold_head(source, rotation.mT, report.gate)):
        with_head(tmp_path / "merged", wrong)
        missed = against(reference, trained, tmp_path / "merged", tmp_path)
        assert missed.mean_kl > 100 * 1e-4, missed
        assert missed.top1 < 0.9, missed
    assert HEAD in ShardSet.open(tmp_path / "merged").entries
