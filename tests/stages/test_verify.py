"""Tests of verify: a sound run passes, and every defect is found and attributed to the stage that made it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from aegis.cli.screens import verify as screens_verify
from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.train_settings import TrainConfig
from aegis.data import kept
from aegis.data.packing import Windows
from aegis.errors import DataError, IntegrityError, UsageError
from aegis.llama_cpp import GgufFile
from aegis.model.base import load_tokenizer
from aegis.runs.facts import TrainFacts
from aegis.runs.manifest import MANIFEST, FileRecord, file_sha256
from aegis.runs.run import Run
from aegis.soul.file import FILE_NAME as SOUL_FILE
from aegis.soul.file import load_soul, save_soul
from aegis.soul.fold import fold_head
from aegis.stages.export import export_gguf
from aegis.stages.merge import MergeInputs, merge
from aegis.stages.train import train
from aegis.stages.verify import verify
from aegis.verification import divergence, llama_passes, retention, run_checks, token_sequences
from aegis.verification.run_precheck import Later
from aegis.verification.structure import Structure
from aegis.verification.token_sequences import CONVERSATIONS, HARD_STRINGS
from aegis.verification.verdict import SCHEMA, SCHEMA_VERSION, read_report
from tests.byte_level import Pre
from tests.conftest import MakeRandom, Recorder

pytestmark = pytest.mark.usefixtures("shared_cache", "unpainted", "cached_tools")

QUICK = VerifyConfig(tokens=256, threads=1, device="cpu")


def make_merged(run: Run, config: MergeConfig = MergeConfig()) -> None:  # noqa: B008 (frozen)
    merge(MergeInputs.from_run(run), run.merged, config, overwrite=True)


def make_gguf(run: Run, name: str = "tiny phi-3") -> None:
    export_gguf(run.merged, run.gguf, ExportConfig(keep_f16=True, name=name), overwrite=True)


@pytest.fixture
def run(finished_run: Run, tmp_path: Path) -> Run:
    """Return a copy to break."""
    shutil.copytree(finished_run.root, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.mark.paints
def test_a_sound_run_is_proven(run: Run) -> None:
    """No stage is guilty; rounding is far under its bounds and quantization is not; the report says the same."""
    verdict = verify(run, QUICK)
    assert verdict.failures == []
    found = {step.name: step.found for step in verdict.steps}
    assert list(found) == ["trained → wide", "wide → merged", "merged → f16", "f16 → Q4_K_M"]
    assert found["wide → merged"].mean_kl < 1e-5
    assert found["merged → f16"].mean_kl < 1e-5
    assert found["trained → wide"].mean_kl > 1e-4
    assert found["f16 → Q4_K_M"].mean_kl > 1e-4
    assert [found.text for found in verdict.retained] == ["kept", "other"]
    assert all(found.result_tempered <= found.result for found in verdict.retained)
    report = read_report(run.verify / "report.json")
    assert (report["schema"], report["version"], report["ok"]) == (SCHEMA, SCHEMA_VERSION, True)
    assert [step["reason"].partition(" ")[0] for step in report["steps"]] == ["a", "rounding", "rounding", "a"]
    types = next(check["detail"]["english"] for check in report["checks"] if check["name"]["key"] == "structure.types")
    assert "0 fallbacks" in types.splitlines()[0]
    assert "output.weight: Q6_K" in types.splitlines()
    other = report["retained"][1]
    assert other["lost"] == pytest.approx(math.log(other["result"] / other["base"]))
    assert not list(run.root.glob(".verify-*"))
    assert (run.verify / "divergence.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("model_type", "pre", "settings"),
    [
        ("qwen2", "qwen2", {"tie_word_embeddings": True}),
        ("phi", "phi-2", {"num_key_value_heads": 4, "intermediate_size": 1024}),
    ],
    ids=["tied", "head with bias"],
)
def test_other_families_are_proven(
    tmp_path: Path, make_random: MakeRandom, knowing_tree: Path, model_type: str, pre: Pre, settings: dict[str, Any]
) -> None:
    """Trained, merged, exported and verified whole: a tied head, and one with a bias, whose loss is found."""
    run = Run(tmp_path / "run")
    short = {
        "max_steps": 4,
        "keep_windows": 8,
        "warmup_steps": 1,
        "annealing_steps": 2,
        "batch_size": 2,
        "max_length": 64,
    }
    base = make_random(model_type, pre=pre, **settings)
    config = TrainConfig(base_model=str(base), device="cpu", learning_rate=1e-2, **short)
    train(config, run, later=Later(export=ExportConfig(llama_cpp_dir=knowing_tree)))
    make_merged(run)
    export = ExportConfig(keep_f16=True, llama_cpp_dir=knowing_tree)
    export_gguf(run.merged, run.gguf, export)
    verdict = verify(run, QUICK.model_copy(update={"llama_cpp_dir": knowing_tree}))
    assert verdict.failures == []
    found = {step.name: step.found for step in verdict.steps}
    assert found["wide → merged"].mean_kl < 1e-5
    assert found["merged → f16"].mean_kl < 1e-5

    if model_type == "phi":
        tensors = load_file(run.merged / "model.safetensors")
        tensors["lm_head.bias"].zero_()
        save_file(tensors, run.merged / "model.safetensors", metadata={"format": "pt"})
        reseal(run.merged)
        export_gguf(run.merged, run.gguf, export, overwrite=True)
        verdict = verify(run, QUICK.model_copy(update={"llama_cpp_dir": knowing_tree}))
        assert verdict.failed_stage == "merge"
        assert any("lm_head.bias" in failure for failure in verdict.failures)


COMPARED = QUICK.model_copy(update={"compare_bases": True})


def test_both_choices_of_base_weights_are_measured(run: Run, reporter: Recorder) -> None:
    """Whichever was merged, the same two rows come out: what was trained is nearer the round trip it was trained on."""
    into_original = verify(run, COMPARED)
    models = ["as trained", "base", "16-bit base", "merged", "merged the other way", "f16 in llama.cpp"]
    models += ["Q4_K_M in llama.cpp"]
    assert [title for title in reporter.tasks if title in models] == models
    assert into_original.failed_stage is None
    make_merged(run, MergeConfig(base_weights="dequantized"))
    make_gguf(run)
    into_round_trip = verify(run, COMPARED)
    assert into_round_trip.failures == []
    for verdict, merged in ((into_original, "original"), (into_round_trip, "dequantized")):
        choices = {choice.name: choice for choice in verdict.bases}
        assert list(choices) == ["original", "dequantized"]
        assert [name for name, choice in choices.items() if choice.merged] == [merged]
        assert choices["dequantized"].found.mean_kl < 1e-5 < 1e-4 < choices["original"].found.mean_kl
        assert choices[merged].perplexity == verdict.perplexity["merged"]
    for one, other in zip(into_original.bases, into_round_trip.bases, strict=True):
        assert one.found == other.found
    steps = {step.name: step.found for step in into_round_trip.steps}
    assert steps["trained → wide"].mean_kl < 1e-9
    assert 0 < steps["wide → merged"].mean_kl < 1e-5
    report = json.loads((run.verify / "report.json").read_text(encoding="utf-8"))
    assert [choice["name"] for choice in report["bases"]] == ["original", "dequantized"]
    assert "dequantized weights (this run)" in screens_verify.verified(into_round_trip, run.verify)


def test_a_merge_into_other_weights_than_recorded_is_found(run: Run) -> None:
    """Merged into the original weights under a manifest that says dequantized, and how: the weights are others."""
    path = run.merged / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["config"]["base_weights"] = "dequantized"
    path.write_text(json.dumps(document), encoding="utf-8")
    verdict = verify(run, QUICK)
    assert verdict.failed_stage == "merge"
    assert any("does not record how" in failure for failure in verdict.failures)
    document["facts"] |= {"nf4_device": "cpu", "nf4_dtype": "float32"}
    path.write_text(json.dumps(document), encoding="utf-8")
    verdict = verify(run, QUICK)
    assert verdict.failed_stage == "merge"
    assert any("is not what the merge makes" in failure for failure in verdict.failures)


def kl_by_hand(run: Run, windows: Windows) -> float:
    """Return KL(base || result) over the first 256 tokens of these windows, by transformers alone."""
    base, result = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (TrainFacts.read(run.adapter).base_model, run.merged)
    )
    found, room = [], QUICK.tokens
    for piece in windows.pieces():
        ids = torch.from_numpy(piece[:room].astype("int64"))[None]
        room -= ids.shape[1]
        if ids.shape[1] < 2:
            break
        with torch.no_grad():
            p, q = (model(input_ids=ids).logits[0].double().log_softmax(-1) for model in (base, result))
        found.append((p.exp() * (p - q)).sum(-1))
    return float(torch.cat(found).mean())


def test_verify_reports_the_divergence_on_kept_text_and_enforces_its_bound(run: Run) -> None:
    """The KL is that of the held-out windows; the sentence is worded by it; a bound below it fails at train."""
    verdict = verify(run, QUICK)
    found = verdict.retained[0]
    stored = kept.load(run.kept / kept.FILE_NAME)
    assert stored is not None
    assert found.kl == pytest.approx(kl_by_hand(run, stored.heldout), rel=1e-3)
    assert abs(found.kl - kl_by_hand(run, stored.train)) > 0.01 * found.kl
    assert verdict.summary is not None
    assert verdict.summary.values["answers"].values["kl"] == found.kl
    assert verdict.summary.values["knows"].key == "retention.better"
    assert screens_verify.verified(verdict, run.verify).splitlines()[-1] == verdict.summary.shown
    report = read_report(run.verify / "report.json")
    assert report["retained"][0]["kl"] == found.kl
    assert report["summary"]["english"] == verdict.summary.english

    below = verify(run, QUICK.model_copy(update={"max_kept_kl": found.kl * 0.9}))
    assert below.failed_stage == "train"
    assert len(below.failures) == 1
    assert "max_kept_kl" in below.failures[0]
    assert read_report(run.verify / "report.json")["failed_stage"] == "train"
    above = verify(run, QUICK.model_copy(update={"max_kept_kl": found.kl * 1.1}))
    assert above.failures == []


def test_a_bound_on_missing_kept_text_is_refused(run: Run) -> None:
    """Without keep there are no kept windows, and without a bound nothing is amiss."""
    path = run.adapter / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["inputs"]["kept"]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        verify(run, QUICK.model_copy(update={"max_kept_kl": 0.1}))
    assert caught.value.text.key == "verify.kept_nothing"
    verdict = verify(run, QUICK)
    assert verdict.failures == []
    assert [found.text for found in verdict.retained] == ["other"]
    assert verdict.summary is not None
    assert verdict.summary.values["answers"].values["text"].key == "retention.other"


# -- one defect each, as a careless or broken stage would have made it: with a manifest that fits ----------------


def reseal(directory: Path, **inputs: str) -> None:
    """Make the manifest fit the current files, so that hashes do not show the defect."""
    path = directory / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    document["files"] = {
        name: vars(FileRecord((directory / name).stat().st_size, file_sha256(directory / name)))
        for name in document["files"]
        if (directory / name).is_file()
    }
    document["inputs"] |= inputs
    path.write_text(json.dumps(document), encoding="utf-8")


def with_merged(change: Callable[[dict[str, torch.Tensor], Run], None]) -> Callable[[Run], None]:
    def defect(run: Run) -> None:
        path = run.merged / "model.safetensors"
        tensors = load_file(path)
        change(tensors, run)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
        reseal(run.merged)
        make_gguf(run)

    return defect


def base_tensors(run: Run) -> dict[str, torch.Tensor]:
    return load_file(Path(TrainFacts.read(run.adapter).base_model) / "model.safetensors")


def unfolded(tensors: dict[str, torch.Tensor], run: Run) -> None:
    tensors["lm_head.weight"] = base_tensors(run)["lm_head.weight"].half()


def transposed(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.adapter / SOUL_FILE)
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation.mT, soul.gate).half()


def wrong_gate(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.adapter / SOUL_FILE)
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation, 0.8).half()


def soul_of_another_step(tensors: dict[str, torch.Tensor], run: Run) -> None:
    soul = load_soul(run.checkpoints / "step_000012" / SOUL_FILE)
    tensors["lm_head.weight"] = fold_head(base_tensors(run)["lm_head.weight"], soul.rotation, soul.gate).half()


def adapter_dropped(tensors: dict[str, torch.Tensor], run: Run) -> None:
    for name, tensor in base_tensors(run).items():
        if name != "lm_head.weight":
            tensors[name] = tensor.half()


def one_layer_lost(tensors: dict[str, torch.Tensor], run: Run) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    tensors[name] = base_tensors(run)[name].half()


def half_the_scale(tensors: dict[str, torch.Tensor], run: Run) -> None:
    """Halve lora_alpha
    r: every update is there, and too small.
    """
    for name, tensor in base_tensors(run).items():
        if "self_attn" in name:
            tensors[name] = ((tensor.float() + tensors[name].float()) / 2).half()


def embeddings_swapped(tensors: dict[str, torch.Tensor], run: Run) -> None:
    rows = [4, 5, *range(100, 600)]
    tensors["model.embed_tokens.weight"][rows] = tensors["model.embed_tokens.weight"][rows[::-1]]


def other_gate_everywhere(run: Run) -> None:
    """Change the soul's g, and make every manifest fit."""
    other_soul_in_adapter(run)
    reseal(run.merged, soul=file_sha256(run.adapter / SOUL_FILE))
    make_gguf(run)


def flipped(path_of: Callable[[Run], Path]) -> Callable[[Run], None]:
    def defect(run: Run) -> None:
        path = path_of(run)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return defect


def overwrite(run: Run, pattern: str, tensor: str, content: Callable[[int], bytes]) -> None:
    """Write `content` of a tensor's size over the tensor's beginning, and reseal."""
    path = next(run.gguf.glob(pattern))
    with GgufFile(path) as gguf:
        info = gguf.tensors[tensor]
    new = content(info.size_bytes)
    assert 0 < len(new) <= info.size_bytes
    data = bytearray(path.read_bytes())
    data[info.offset_bytes : info.offset_bytes + len(new)] = new
    path.write_bytes(data)
    reseal(run.gguf)


def head_of_another_run(run: Run) -> None:
    head = base_tensors(run)["lm_head.weight"].half().numpy().tobytes()

    def whole(size: int) -> bytes:
        assert len(head) == size
        return head

    overwrite(run, "*-F16.gguf", "output.weight", whole)


def f16_layer_of_the_base(run: Run) -> None:
    tensor = base_tensors(run)["model.layers.0.self_attn.o_proj.weight"]
    overwrite(run, "*-F16.gguf", "blk.0.attn_output.weight", lambda _size: tensor.half().numpy().tobytes())


def other_soul_in_adapter(run: Run) -> None:
    path = run.adapter / SOUL_FILE
    soul = load_soul(path)
    save_soul(path, replace(soul, alpha=soul.alpha - 0.3))
    reseal(run.adapter)


def quantized_file_spoiled(run: Run) -> None:
    overwrite(run, "*-Q4_K_M.gguf", "output.weight", lambda size: bytes(size // 2))


CHANGED = (
    ("a shard", flipped(lambda run: run.merged / "model.safetensors"), "merge", "content changed"),
    ("the soul", flipped(lambda run: run.adapter / SOUL_FILE), "train", "content changed"),
    ("the kept text", flipped(lambda run: run.kept / kept.FILE_NAME), "train", "content changed"),
    ("the f16", flipped(lambda run: next(run.gguf.glob("*F16*"))), "convert", "content changed"),
    ("Q4_K_M", flipped(lambda run: next(run.gguf.glob("*Q4*"))), "convert", "content changed"),
    ("the soul, swapped after the merge", other_soul_in_adapter, "merge", "another soul"),
)


@pytest.mark.parametrize(("name", "change", "stage", "says"), CHANGED, ids=[case[0] for case in CHANGED])
def test_a_file_that_changed_after_it_was_published_is_found(
    run: Run, name: str, change: Callable[[Run], None], stage: str, says: str
) -> None:
    change(run)
    verdict = verify(run, QUICK)
    assert verdict.failed_stage == stage, verdict.failures
    assert any(says in failure for failure in verdict.failures), verdict.failures
    assert json.loads((run.verify / "report.json").read_text(encoding="utf-8"))["failed_stage"] == stage


SHOWN_BY_NUMBERS = (
    ("unfolded head", with_merged(unfolded), "merge"),
    ("transposed R", with_merged(transposed), "merge"),
    ("wrong g", with_merged(wrong_gate), "merge"),
    ("soul of another step", with_merged(soul_of_another_step), "merge"),
    ("wrong g in the soul, all hashes fit", other_gate_everywhere, "merge"),
    ("adapter dropped", with_merged(adapter_dropped), "merge"),
    ("one LoRA layer lost", with_merged(one_layer_lost), "merge"),
    ("adapter at half its scale", with_merged(half_the_scale), "merge"),
    ("two embeddings swapped", with_merged(embeddings_swapped), "merge"),
    ("f16 head of another run", head_of_another_run, "convert"),
    ("a layer of the f16 from the base", f16_layer_of_the_base, "convert"),
    ("quantized tensor spoiled", quantized_file_spoiled, "quantize"),
)


@pytest.mark.parametrize(("name", "make", "stage_name"), SHOWN_BY_NUMBERS, ids=[case[0] for case in SHOWN_BY_NUMBERS])
def test_the_measurements_alone_identify_the_defective_stage(
    run: Run, name: str, make: Callable[[Run], None], stage_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second witness: with every comparison of bytes switched off, the models' outputs name the same stage."""
    make(run)
    monkeypatch.setattr(Structure, "_in_order", lambda *_: None)
    monkeypatch.setattr(run_checks, "check_published", lambda _checks, _run: None)
    verdict = verify(run, QUICK.model_copy(update={"max_kl_quantized": 0.3}))
    assert verdict.failed_stage == stage_name, verdict.steps
    assert {check.ok for check in verdict.checks} <= {True}


@pytest.mark.parametrize(
    ("recording", "stage"),
    [
        ("trained", "train"),
        ("base", "train"),
        ("wide", "train"),
        ("merged", "merge"),
        ("result-other", "merge"),
        ("other-way", "merge"),
        ("f16", "convert"),
        ("Q4_K_M", "quantize"),
    ],
)
def test_a_model_that_returns_nan_is_its_makers_fault(
    run: Run, monkeypatch: pytest.MonkeyPatch, recording: str, stage: str
) -> None:
    record = divergence.record

    def spoiled(path: Path, outputs: Iterable[divergence.Logits], *arguments: Any) -> divergence.Recording:
        return record(path, (logits * math.nan if path.stem == recording else logits for logits in outputs), *arguments)

    for module in (divergence, llama_passes, retention):
        monkeypatch.setattr(module, "record", spoiled)
    monkeypatch.setattr(Structure, "_in_order", lambda *_: None)
    verdict = verify(run, COMPARED)
    assert [check.name.key for check in verdict.checks if not check.ok] == ["verify.every_model"]
    assert verdict.failed_stage == stage


def test_an_unfinished_run_is_an_error_with_the_next_command(run: Run) -> None:
    shutil.rmtree(run.gguf)
    with pytest.raises(IntegrityError, match="not finished: there is no gguf/") as caught:
        verify(run, QUICK)
    assert "aegis export-gguf --run" in caught.value.fix
    assert not run.verify.exists()


def test_the_users_own_text_can_be_verified_on(run: Run, tmp_path: Path) -> None:
    """The given text is used; one that is too short is refused."""
    path = tmp_path / "text.txt"
    path.write_text("短い。", encoding="utf-8")
    with pytest.raises(DataError, match="too short"):
        verify(run, QUICK.model_copy(update={"text": path}))
    path.write_text("りんごは赤い果物です。\n\n" * 40, encoding="utf-8")
    verdict = verify(run, QUICK.model_copy(update={"text": path}))
    assert verdict.failed_stage is None
    assert verdict.tokens == 256
    # every paragraph plain, up to 64 of them, and as many chats, beside the strings that are always compared
    given = {check.name.english: check.detail.english for check in verdict.checks}
    own = verify(run, QUICK)
    usual = next(check.detail.english for check in own.checks if check.name.english.startswith("token ids of"))
    printed = next(detail for name, detail in given.items() if name.startswith("token ids of"))
    assert int(printed.split()[0]) == len(HARD_STRINGS) + len(CONVERSATIONS) + 1 + 2 * 40
    assert int(usual.split()[0]) > len(HARD_STRINGS) + len(CONVERSATIONS) + 1
    examiner_chats = token_sequences.rendered(["一つ。", "二つ。"], load_tokenizer(run.merged))
    assert all("<|user|>" in chat for chat in examiner_chats)
    assert len(examiner_chats) == 2
