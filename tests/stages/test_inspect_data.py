"""Tests of data: it shows the rows with their trained text marked, and what is left out with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aegis.cli.screens.data import inspected
from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_training_set
from aegis.errors import DataError
from aegis.model.base import load_tokenizer
from aegis.stages.inspect_data import inspect_data
from tests.conftest import Recorder
from tests.trained import small_training, write_chats


@pytest.fixture
def config(quick_base: Path, tmp_path: Path, cache: Path) -> TrainConfig:
    return small_training(quick_base, write_chats(tmp_path / "data.jsonl"))


def test_the_marked_text_is_what_training_trains_on(config: TrainConfig, cache: Path) -> None:
    view = inspect_data(config, 2)
    assert not cache.exists()
    first = view.rows[0]
    assert [text.strip() for text, trained in first.parts if trained] == ["0番目の答えでござる。<|end|>"]
    assert "春の花は何ですか。" in "".join(text for text, trained in first.parts if not trained)
    data = load_training_set(config, load_tokenizer(Path(config.base_model)), keep=False)
    assert view.report == data.report
    assert view.passes == config.max_steps * 2 / len(data.train)
    text = inspected(view)
    assert "⟦0番目の答えでござる。<|end|>⟧" in text
    assert f"{first.tokens} tokens, {first.trained_tokens} of them trained on" in text
    assert text.count("番目の答え") == 2


def test_the_demos_rows_are_named_after_it(config: TrainConfig) -> None:
    """Not after the temporary file that they are in."""
    view = inspect_data(config.model_copy(update={"dataset": "demo"}), 2)
    assert (view.report.source, [row.where for row in view.rows]) == ("demo", ["demo:1", "demo:2"])


def test_epochs_are_shown_as_steps(config: TrainConfig) -> None:
    view = inspect_data(config.model_copy(update={"epochs": 3.0}), 0)
    assert view.rows == ()
    assert 3.0 <= view.passes < 3.0 + 2 / view.report.windows


def test_rows_that_cannot_be_used_are_named(config: TrainConfig, reporter: Recorder) -> None:
    """All of them, though a training stops at the first; the good rows are shown beside them."""
    path = Path(config.dataset)
    bad = {"messages": [{"role": "user", "content": "問い"}]}
    path.write_text(f"{json.dumps(bad)}\n{path.read_text(encoding='utf-8')}{{\n", encoding="utf-8")
    view = inspect_data(config, 1)
    assert view.too_many_bad
    assert "0番目" in "".join(text for text, _ in view.rows[0].parts)
    assert any("data.jsonl:1" in text for text in reporter.warned)
    assert any("data.jsonl:22" in text for text in reporter.warned)
    assert "--skip-bad 2" in inspected(view)
    allowed = inspect_data(config.model_copy(update={"skip_bad": 2}), 1)
    assert not allowed.too_many_bad
    assert "--skip-bad" not in inspected(allowed)
    with pytest.raises(DataError):
        load_training_set(config, load_tokenizer(Path(config.base_model)), keep=False)


def test_a_long_row_is_cut_only_on_the_screen(config: TrainConfig) -> None:
    Path(config.dataset).write_text(json.dumps({"text": "あ" * 5000}) + "\n", encoding="utf-8")
    view = inspect_data(config, 1)
    assert sum(len(text) for text, _ in view.rows[0].parts) > 5000
    text = inspected(view)
    assert text.count("あ") < 4001
    assert "more characters" in text


def test_the_command(config: TrainConfig) -> None:
    from aegis.cli.app import app

    arguments = ["data", config.dataset, "--base-model", config.base_model, "--rows", "1", "--max-length", "64"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "⟦0番目の答えでござる。<|end|>⟧" in done.output
    with Path(config.dataset).open("a", encoding="utf-8") as file:
        file.write("{\n")
    assert CliRunner().invoke(app, arguments).exit_code == 4
