"""Tests of the answers that a training writes down: they are the model's own, they change nothing, and cost little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from aegis import progress
from aegis.chat.load import load_for_answers
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_heldout_questions
from aegis.model.base import load_tokenizer
from aegis.runs.manifest import read_manifest
from aegis.runs.metrics import read_metrics
from aegis.runs.run import Run
from aegis.stages.train import train
from aegis.training.answers import MAX_TOKENS, SHARE, _Clock
from tests.conftest import Recorder
from tests.trained import small_training, train_until_killed, write_chats

pytestmark = pytest.mark.usefixtures("shared_cache", "unpainted")


@pytest.fixture(scope="module")
def config(quick_base: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return a training that says something else at each of its ends; it samples after steps 3, 6 and 8."""
    data = write_chats(tmp_path_factory.mktemp("data") / "data.jsonl")
    changes = {"sample_steps": "3", "learning_rate": 2e-2, "gradient_accumulation_steps": 4, "heldout_rows": 9}
    return small_training(quick_base, data).model_copy(update=changes)


@pytest.fixture(scope="module")
def sampled(config: TrainConfig, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("sampled") / "run")
    train(config, run)
    return run


def weights(run: Run) -> list[bytes]:
    return [(run.adapter / name).read_bytes() for name in ("adapter_model.safetensors", "soul.safetensors")]


def without_time(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "time"} for row in read_metrics(run.answers)]


def test_a_training_that_answers_ends_in_the_same_bytes(tmp_path: Path, config: TrainConfig, sampled: Run) -> None:
    """The control, with another seed, ends in other bytes."""
    silent, other = Run(tmp_path / "silent"), Run(tmp_path / "other")
    train(config.model_copy(update={"sample_steps": "off"}), silent)
    assert weights(silent) == weights(sampled)
    assert not silent.answers.exists()
    train(config.model_copy(update={"sample_steps": "off", "seed": 7}), other)
    assert weights(other) != weights(sampled)


def test_the_answers_are_those_of_the_model_as_it_is_then(config: TrainConfig, sampled: Run, quick_base: Path) -> None:
    """The last ones are the finished model's to the report's first questions; the base, a control, has others."""
    rows = read_metrics(sampled.answers)
    assert [row["step"] for row in rows] == [3, 3, 6, 6, 8, 8]
    tokenizer = load_tokenizer(quick_base)
    questions = load_heldout_questions(config, tokenizer, read_manifest(sampled.adapter).inputs["data"], 2)
    last = rows[-2:]
    assert [row["question"] for row in last] == questions
    assert all(row["reference"].endswith("番目の答えでござる。") for row in rows)
    asked = [[{"role": "user", "content": question}] for question in questions]
    found = {
        who: [answer.text for answer in model.answers(asked, MAX_TOKENS, expired=lambda: False, advance=int)]
        for who, model in load_for_answers(sampled, ("base", "trained"))
    }
    assert [row["answer"] for row in last] == found["trained"]
    assert found["base"] != found["trained"]
    assert [row["answer"] for row in rows[:2]] != found["trained"]


def test_a_resumed_training_has_the_answers_of_an_uninterrupted_one(
    tmp_path: Path, config: TrainConfig, monkeypatch: pytest.MonkeyPatch, sampled: Run
) -> None:
    """Killed after step 7, it goes on after step 6; what it had written of step 7 is written once."""
    broken = Run(tmp_path / "broken")
    each = config.model_copy(update={"sample_steps": "1"})
    train_until_killed(monkeypatch, 7, each, broken)
    assert max(row["step"] for row in read_metrics(broken.answers)) == 7
    train(config, broken, resume=True)  # how often it samples may change
    assert weights(broken) == weights(sampled)
    steps = [row["step"] for row in read_metrics(broken.answers)]
    assert steps == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 8, 8]
    assert [row for row in without_time(broken) if row["step"] in (3, 6, 8)] == without_time(sampled)


def test_a_text_is_continued_from_its_first_words(tmp_path: Path, config: TrainConfig) -> None:
    data = tmp_path / "texts.jsonl"
    texts = [
        f"{n}番目の話。むかしむかし、あるところに、おじいさんとおばあさんが住んでいました。" * 2 for n in range(30)
    ]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    run = Run(tmp_path / "run")
    train(config.model_copy(update={"dataset": str(data), "max_steps": 3, "keep_weight": 0.0}), run)
    rows = read_metrics(run.answers)
    assert len(rows) == 2
    for row in rows:
        (text,) = [text for text in texts if text.startswith(row["question"])]
        assert text.startswith(row["question"] + row["reference"])
        assert len(row["reference"]) > 10
        assert row["answer"]


def test_data_that_is_gone_costs_the_answers_alone(tmp_path: Path, config: TrainConfig, quick_base: Path) -> None:
    data = write_chats(tmp_path / "data.jsonl")

    class Deleting(Recorder):
        def metrics(self, row: dict[str, object]) -> None:
            data.unlink(missing_ok=True)

    reporter, run = Deleting(), Run(tmp_path / "run")
    progress.install(reporter)
    train(config.model_copy(update={"dataset": str(data)}), run)
    assert load_file(run.adapter / "adapter_model.safetensors")
    assert [text for text in reporter.messages if "answers.jsonl" in text and str(data) in text]
    assert not run.answers.exists()


def answered(seconds_per_step: float, steps: int, cost: float, starting: float = 0.0) -> tuple[list[int], float, float]:
    """Let a clock decide in a training with these times; return the steps with answers, and their part of the time."""
    now, found = 0.0, []
    clock = _Clock(0, steps, now=lambda: now)
    limit = 0.0
    for done in range(1, steps + 1):
        now += seconds_per_step + (starting if done == 2 else 0)
        if (done == 1 or done % 10 == 0) and clock.permits(done):
            found.append(done)
            with clock.spending(), clock.answering():
                now += min(cost, clock.allowed)
                limit += min(cost, clock.allowed)
    return found, limit / now, now


@pytest.mark.parametrize(("seconds", "steps", "cost"), [(1.3, 500, 4.0), (0.2, 400, 0.7), (0.028, 20_000, 1.2)])
@pytest.mark.parametrize("starting", [0.0, 15.0])
def test_answers_take_two_percent_of_the_time(seconds: float, steps: int, cost: float, starting: float) -> None:
    """Times of a 12 GB card, of the demo and of a large card; the first steps may compile for as long as they like."""
    found, part, _ = answered(seconds, steps, cost, starting)
    assert found[0] == 20
    assert part <= SHARE * 1.01
    assert len(found) >= min(3, SHARE * seconds * steps // cost)


def test_a_pause_between_two_rows_does_not_make_a_training_longer() -> None:
    """A finish begins after step 300 of a short training on a large card. The control is a longer training."""
    assert permitted_at(0.028, pause=15.0) == []
    assert permitted_at(0.4, pause=15.0) != []


def permitted_at(seconds_per_step: float, pause: float) -> list[int]:
    """Return the steps of 500 at which a clock permits answers, where none are given."""
    now, found = 0.0, []
    clock = _Clock(0, 500, now=lambda: now)
    for done in range(10, 500, 10):
        now += 10 * seconds_per_step + (pause if done == 310 else 0)
        if clock.permits(done):
            found.append(done)
    return found


def test_a_training_of_seconds_has_no_answers() -> None:
    """The control is the same one, ten times as long."""
    assert answered(0.028, 500, 1.2)[0] == []
    assert answered(0.28, 500, 1.2)[0] != []
