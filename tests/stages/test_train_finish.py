"""Tests of a training's finish: when there is one, what it leaves, and that it resumes to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config.settings import ExportConfig, MergeConfig, VerifyConfig
from aegis.config.study_settings import StudyConfig
from aegis.config.train_settings import TrainConfig
from aegis.demo.corpus import documents
from aegis.errors import EnvironmentFault, UsageError
from aegis.llama_cpp import find_converter
from aegis.model.base import find_base
from aegis.run_all import run_all
from aegis.runs.facts import AdapterFacts
from aegis.runs.run import Run
from aegis.stages.export import export_gguf
from aegis.stages.quantize_study import quantize_study
from aegis.stages.train import train
from aegis.stages.verify import verify as verify_run
from aegis.training import checkpoint, finish_rounding
from aegis.training.distributed.group import ProcessGroup
from aegis.training.finish import Finish
from aegis.training.finish_choice import plan_finish
from aegis.training.inputs import TrainingInputs
from aegis.training.state import TrainState
from aegis.verification.findings import NO_BOUNDS
from aegis.verification.run_precheck import Later
from aegis.verification.tokenizer_precheck import converted_vocabulary
from tests.conftest import Recorder
from tests.trained import small_training, train_until_killed, write_chats

pytestmark = pytest.mark.usefixtures("unpainted")


@pytest.fixture
def config(quick_base: Path, tmp_path: Path, shared_cache: Path) -> TrainConfig:
    find_converter()
    short = small_training(quick_base, write_chats(tmp_path / "data.jsonl"))
    return short.model_copy(update={"max_steps": 6, "annealing_steps": 3, "finish_steps": "3"})


def planned(config: TrainConfig, later: Later | None = None) -> Finish | None:
    base = find_base(config.base_model)
    with converted_vocabulary(base) as vocabulary:
        return plan_finish(config, base, later or Later(), vocabulary)


def trained_bytes(run: Run) -> list[bytes]:
    return [(run.adapter / name).read_bytes() for name in ("adapter_model.safetensors", "soul.safetensors")]


def test_the_manifest_has_the_finish_and_the_result_is_another(tmp_path: Path, config: TrainConfig) -> None:
    finished, plain = Run(tmp_path / "finished"), Run(tmp_path / "plain")
    train(config, finished)
    train(config.model_copy(update={"finish_steps": "off"}), plain)
    facts = AdapterFacts.read(finished.adapter).finish
    assert facts is not None
    assert (facts.steps, facts.quant) == (3, "Q4_K_M")
    assert facts.types["lm_head.weight"] == "Q6_K"
    assert AdapterFacts.read(plain.adapter).finish is None
    assert trained_bytes(finished) != trained_bytes(plain)

    def rows(run: Run) -> list[Any]:
        return [json.loads(line)["task_loss"] for line in run.metrics.read_text(encoding="utf-8").splitlines()]

    # before the finish the steps are the same, and its first one computes with other weights already
    assert [one == other for one, other in zip(rows(finished), rows(plain), strict=True)] == [True] * 3 + [False] * 3


def test_kept_text_weighs_more_in_the_finish_alone(tmp_path: Path, config: TrainConfig) -> None:
    changed = {"max_steps": 4, "finish_steps": "2", "finish_keep": 3.0, "keep_every": 1, "orthogonality_weight": 0.0}
    run = Run(tmp_path / "run")
    train(config.model_copy(update=changed), run)
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    weights = [(row["loss"] - row["task_loss"]) / row["keep_kl"] for row in rows[1:]]
    assert weights == pytest.approx([1.0, 3.0, 3.0], rel=1e-4)


def test_in_a_finish_of_all_steps_the_two_weights_multiply(tmp_path: Path, config: TrainConfig) -> None:
    config = config.model_copy(update={"max_steps": 3, "finish_steps": "3", "keep_every": 1})
    results = []
    for keep_weight, finish_keep in ((0.5, 2.0), (1.0, 1.0), (0.5, 1.0)):
        run = Run(tmp_path / f"{keep_weight}-{finish_keep}")
        train(config.model_copy(update={"keep_weight": keep_weight, "finish_keep": finish_keep}), run)
        results.append(trained_bytes(run))
    assert results[0] == results[1]
    assert results[0] != results[2]


def test_a_resumed_finish_equals_an_uninterrupted_one(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the finish, in its first step and in its last one."""
    config = config.model_copy(update={"save_steps": 1})
    whole = Run(tmp_path / "whole")
    train(config, whole)
    for killed_in in (2, 3, 5):
        killed = Run(tmp_path / f"killed{killed_in}")
        train_until_killed(monkeypatch, killed_in, config, killed)
        train(config, killed, resume=True)
        assert trained_bytes(killed) == trained_bytes(whole)


def test_a_finish_that_rounds_every_few_steps_does_not_depend_on_saves_evaluations_and_interruptions(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU. Rounding for every step misses, and so does a resume that forgot what was rounded."""
    config = config.model_copy(update={"max_steps": 9, "finish_steps": "7"})

    def trained(name: str, save_steps: int, killed_in: int | None = None) -> list[bytes]:
        run, settings = Run(tmp_path / name), config.model_copy(update={"save_steps": save_steps})
        if killed_in is not None:
            train_until_killed(monkeypatch, killed_in, settings, run)
        train(settings, run, resume=killed_in is not None)
        return trained_bytes(run)

    every_step = trained("every step", 3)
    monkeypatch.setitem(finish_rounding._PERIOD, "cpu", 4)
    whole = trained("whole", 3)
    assert whole != every_step
    assert trained("other saves", 2) == whole
    for killed_in in (2, 3, 5, 6, 8):
        assert trained(f"killed in {killed_in}", 1, killed_in) == whole
    load = checkpoint.load

    def forgetful(folder: Path, state: TrainState) -> None:
        load(folder, state)
        state.rounded_for = None

    monkeypatch.setattr(checkpoint, "load", forgetful)
    assert trained("forgot", 1, 6) != whole


def test_a_run_goes_on_for_the_type_that_its_training_was_started_for(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """Killed, finished, and asked for another file first; only another start is for another type."""
    config = config.model_copy(update={"save_steps": 1})
    run, killed, other = Run(tmp_path / "run"), Run(tmp_path / "killed"), Later(export=ExportConfig(quant=("Q3_K_M",)))
    train(config, run)
    train_until_killed(monkeypatch, 4, config, killed)
    train(config, killed, resume=True, later=other)
    train(config, run, reuse=True, later=other)
    assert trained_bytes(killed) == trained_bytes(run)
    assert sum("Q3_K_M" in text and "Q4_K_M" in text for text in reporter.messages) == 2
    train(config, run, overwrite=True, later=other)
    facts = AdapterFacts.read(run.adapter)
    assert facts.finish is not None
    assert (facts.quant, facts.finish.quant) == ("Q3_K_M", "Q3_K_M")
    assert trained_bytes(killed) != trained_bytes(run)


def test_auto_finishes_long_trainings_for_types_that_lose_much(config: TrainConfig, reporter: Recorder) -> None:
    auto = config.model_copy(update={"finish_steps": "auto", "max_steps": 200})
    found = planned(auto)
    assert found is not None
    assert (found.start, found.steps) == (120, 80)
    assert planned(auto.model_copy(update={"max_steps": 99})) is None
    assert planned(auto, Later(export=ExportConfig(quant=("Q8_0", "Q4_K_M")))) is None
    assert planned(auto.model_copy(update={"finish_steps": "off"})) is None


@pytest.mark.parametrize(
    ("changed", "later"),
    [
        ({"finish_steps": "7"}, {}),
        ({"shard_base": True}, {}),
        ({}, {"merge": MergeConfig(base_weights="dequantized")}),
        ({}, {"export": ExportConfig(imatrix=Path("imatrix.gguf"))}),
    ],
)
def test_a_finish_that_is_not_possible_is_refused_if_asked_for_and_left_out_by_auto(
    changed: dict[str, Any], later: dict[str, Any], config: TrainConfig, reporter: Recorder
) -> None:
    asked = config.model_copy(update=changed)
    with pytest.raises(UsageError) as caught:
        planned(asked, Later(**later))
    assert caught.value.key == "finish.impossible"
    if "finish_steps" not in changed:
        assert planned(asked.model_copy(update={"finish_steps": "auto", "max_steps": 200}), Later(**later)) is None
        assert any("--finish" in text or "finish" in text.lower() for text in reporter.messages)


@pytest.mark.parametrize("value", ["0", "-1", "some", "1.5", True])
def test_a_finish_has_a_number_of_steps_or_a_word(value: object) -> None:
    with pytest.raises(ValueError, match="finish_steps"):
        TrainConfig(finish_steps=value)  # type: ignore[arg-type]
    assert TrainConfig(finish_steps=12).finish_steps == "12"  # type: ignore[arg-type]


def test_verify_holds_the_file_to_the_trained_model_and_finds_the_file_of_a_training_without_finish(
    tmp_path: Path, config: TrainConfig, reporter: Recorder
) -> None:
    """The same pair misses its bound by far if the trained model's weights were not the file's."""
    run = Run(tmp_path / "run")
    verify = VerifyConfig(tokens=256, device="cpu")
    _, verdict = run_all(config, MergeConfig(), ExportConfig(quant=("Q4_K_M", "Q8_0")), verify, run)
    named = [text for text in reporter.messages if "(--finish-steps off)" in text]
    assert len(named) == 1
    assert "Q8_0" in named[0]
    text = tmp_path / "text.txt"
    text.write_text("\n".join(documents(0, 100)), encoding="utf-8")
    study = StudyConfig(quant=("Q4_K_M",), variants=("plain",), text=text, tokens=64, threads=1)
    quantize_study(run, study, dry_run=True)
    assert sum("Q4_K_M without an importance matrix is favoured" in text for text in reporter.messages) == 1
    steps = {step.name: step for step in verdict.steps}
    pair = steps["trained → Q4_K_M"]
    assert verdict.failed_stage is None
    assert pair.bounds.mean_kl == 2e-3
    assert pair.found.mean_kl < steps["f16 → Q4_K_M"].found.mean_kl / 10
    export_gguf(run.merged, run.gguf, ExportConfig(quant=("Q4_K_M",), head_quant="Q8_0"), overwrite=True)
    otherwise = {step.name: step for step in verify_run(run, verify).steps}["trained → Q4_K_M"]
    assert otherwise.bounds == NO_BOUNDS
    assert otherwise.found.mean_kl > pair.found.mean_kl
    assert sum("another type of LM head" in text for text in reporter.messages) == 1
    _, plain = run_all(
        config.model_copy(update={"finish_steps": "off"}),
        MergeConfig(),
        ExportConfig(),
        verify,
        Run(tmp_path / "plain"),
    )
    assert "trained → Q4_K_M" not in {step.name for step in plain.steps}
    assert [text for text in reporter.messages if "(--finish-steps off)" in text] == named
    shipped = next(near for near in plain.nearness if near.name == "Q4_K_M")
    assert shipped.shipped > 10 * pair.found.mean_kl


def test_the_finish_computes_without_dropout(tmp_path: Path, config: TrainConfig) -> None:
    """Dropout before A would be on a weight that the file has not."""
    config = config.model_copy(update={"finish_steps": "6", "lora_dropout": 0.5})
    dropped, whole = Run(tmp_path / "dropped"), Run(tmp_path / "whole")
    train(config, dropped)
    train(config.model_copy(update={"lora_dropout": 0.0}), whole)
    assert trained_bytes(dropped) == trained_bytes(whole)


def test_without_a_converter_that_can_be_fetched_only_train_goes_on(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """By itself there is no finish then, and the reason is named; asked for, or if an export follows, it is refused."""
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")

    def made(config: TrainConfig, later: Later | None = None) -> TrainingInputs:
        return TrainingInputs.make(config, torch.device("cpu"), ProcessGroup(), later=later)

    auto = config.model_copy(update={"finish_steps": "auto", "max_steps": 100})
    assert made(auto).finish is None
    assert any("converter" in text for text in reporter.messages)
    for asked, later in ((auto, Later(is_certain=True)), (config, None)):
        with pytest.raises(EnvironmentFault):
            made(asked, later)
