"""Tests that a base that merge or export would refuse is refused before the training, from headers alone."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.config.settings import ExportConfig, MergeConfig
from aegis.config.train_settings import TrainConfig
from aegis.errors import AegisError, EnvironmentFault, UnsupportedModelError, UsageError
from aegis.model.base import Base
from aegis.runs.run import Run
from aegis.stages.train import train
from aegis.training import build_state as building
from aegis.verification.base_precheck import check_base
from aegis.verification.gguf_checks import files_bytes
from aegis.verification.run_precheck import Later, check_later
from aegis.verification.space_estimate import merged_shapes
from tests.conftest import MakeRandom, Recorder

Change = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def rewritten(folder: Path, to: Path, change: Change) -> Base:
    shutil.copytree(folder, to)
    path = to / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return Base("someone/model", to, None)


def with_tensor(name: str) -> Change:
    return lambda tensors: {**tensors, name: torch.zeros(4, 4)}


def untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"lm_head.weight": tensors["model.embed_tokens.weight"].clone(), **tensors}


def bare(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def test_weights_of_a_bare_decoder_are_refused(make_random: MakeRandom, tmp_path: Path) -> None:
    base = rewritten(make_random("llama"), tmp_path / "base", bare)
    with pytest.raises(UnsupportedModelError) as caught:
        check_base(base, ())
    assert caught.value.key == "precheck.other_names"
    assert caught.value.values["wanted"] == "model.layers.0.self_attn.q_proj.weight"
    assert caught.value.values["found"] == "layers.0.self_attn.q_proj.weight"


@pytest.mark.parametrize("name", ["v_head.summary.weight", "model.layers.0.self_attn.attn_bias", "score.weight"])
def test_an_unknown_tensor_in_a_proven_family_is_refused(make_random: MakeRandom, tmp_path: Path, name: str) -> None:
    base = rewritten(make_random("llama"), tmp_path / "base", with_tensor(name))
    with pytest.raises(UnsupportedModelError) as caught:
        check_base(base, ())
    assert caught.value.key == "precheck.stray_tensors"
    assert caught.value.values["stray"] == name


@pytest.mark.parametrize("model_type", ["llama", "phi3", "qwen2", "qwen3", "gemma3_text", "phi", "mistral", "smollm3"])
def test_proven_families_pass_the_precheck(make_random: MakeRandom, tmp_path: Path, model_type: str) -> None:
    """So does what the converter passes over: old files hold the frequencies of their rotary embeddings."""
    tied = model_type in ("gemma3_text", "smollm3")
    folder = make_random(model_type, tie_word_embeddings=tied)
    check_base(rewritten(folder, tmp_path / "base", with_tensor("model.layers.0.self_attn.rotary_emb.inv_freq")), ())


@pytest.mark.timeout(300)
def test_the_converter_checks_a_base_of_another_family_once(
    make_random: MakeRandom, knowing_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    folder = make_random("olmo2", pre="llama-bpe")
    for _ in range(2):
        check_base(Base("someone/model", folder, None), (), knowing_tree)
    assert len([output for output in reporter.messages if "checking the tensors" in output]) == 1
    stray = rewritten(folder, tmp_path / "base", with_tensor("v_head.summary.weight"))
    with pytest.raises(UnsupportedModelError) as caught:
        check_base(stray, (), knowing_tree)
    assert caught.value.key == "precheck.not_converted"
    assert "v_head.summary" in caught.value.why


def test_settings_that_merge_or_export_would_refuse_are_refused_before_training(
    make_random: MakeRandom, tmp_path: Path
) -> None:
    base = Base("someone/model", make_random("llama"), None)
    odd = Base("someone/model", make_random("llama", hidden_size=80, num_attention_heads=2, head_dim=64), None)
    dequantized = MergeConfig(base_weights="dequantized")
    for which, load_in, later, key in (
        (base, "4bit", Later(dequantized), None),
        (base, "16bit", Later(dequantized), "precheck.no_round_trip"),
        (odd, "4bit", Later(dequantized), "load.odd_rows"),
        (odd, "4bit", Later(), None),
        (base, "4bit", Later(export=ExportConfig(quant=("Q9_K",))), "quantize.unknown_type"),
        (base, "4bit", Later(export=ExportConfig(quant=("IQ2_XXS",))), "quantize.needs_imatrix"),
        (base, "4bit", Later(export=ExportConfig(head_quant="q9")), "quantize.unknown_tensor_type"),
    ):
        train_config = TrainConfig.model_validate({"load_in": load_in})
        if key is None:
            check_later(which, train_config, later, Run(tmp_path / "run"))
            continue
        with pytest.raises(AegisError) as caught:
            check_later(which, train_config, later, Run(tmp_path / "run"))
        assert caught.value.key == key


def test_a_disk_too_small_for_later_stages_is_refused_before_training(
    make_random: MakeRandom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """Refused if merge and export follow in the command, else a warning; existing files need no space."""
    base, run = Base("someone/model", make_random("llama"), None), Run(tmp_path / "run")
    free = 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
    check_later(base, TrainConfig(), Later(), run)
    assert any("merge and export would need" in text for text in reporter.warned)
    with pytest.raises(EnvironmentFault) as caught:
        check_later(base, TrainConfig(), Later(is_certain=True), run)
    assert caught.value.key == "disk.too_small"
    run.merged.mkdir(parents=True)
    (run.merged / "model.safetensors").write_bytes(b"0" * (1 << 24))
    check_later(base, TrainConfig(), Later(is_certain=True), run)


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}, {"hidden_size": 80, "head_dim": 16}])
def test_a_disk_that_passes_before_the_training_has_room_for_merge_and_export(
    make_random: MakeRandom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """One byte less than export asks for, beside the merged weights, is refused before; by config.json alone too."""
    base = Base("someone/model", make_random("llama", **settings), None)
    merged = rewritten(base.folder, tmp_path / "merged", untied)
    shapes = [entry.shape for entry in merged.shards.entries.values()]
    assert sorted(merged_shapes(base)) == sorted(shapes)
    asked = files_bytes(merged.folder, merged.shards, ["F16", "Q4_K_M"])
    free = 2 * sum(map(math.prod, shapes)) + asked - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault) as caught:
        check_later(base, TrainConfig(), Later(is_certain=True), Run(tmp_path / "run"))
    assert caught.value.key == "disk.too_small"


def test_train_makes_these_checks_before_it_loads_the_base(
    make_random: MakeRandom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object, **options: object) -> None:
        raise AssertionError("the base was loaded")

    monkeypatch.setattr(building, "load_base", load)
    (tmp_path / "data.jsonl").write_text('{"text": "春の花は桜です。"}\n' * 4, encoding="utf-8")
    whole = make_random("phi3")
    no_names = rewritten(whole, tmp_path / "names", bare).folder
    stray = rewritten(whole, tmp_path / "stray", with_tensor("v_head.summary.weight")).folder
    for folder, targets, kind, key in (
        (no_names, (), UnsupportedModelError, "precheck.other_names"),
        (stray, (), UnsupportedModelError, "precheck.stray_tensors"),
        (whole, ("no_proj",), UsageError, "lora.no_module"),
    ):
        settings = TrainConfig(
            base_model=str(folder),
            dataset=str(tmp_path / "data.jsonl"),
            device="cpu",
            lora_targets=targets,
            keep_weight=0,
        )
        with pytest.raises(kind) as caught:
            train(settings, Run(tmp_path / "run"))
        assert isinstance(caught.value, AegisError)
        assert caught.value.key == key
    with pytest.raises(AssertionError, match="the base was loaded"):
        train(settings.model_copy(update={"lora_targets": ()}), Run(tmp_path / "run"))
