"""Tests that exactly the questions of held-out chats are found, from their tokens alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aegis.config.train_settings import TrainConfig
from aegis.data.training_set import load_heldout_questions, load_training_set
from aegis.errors import DataError
from aegis.model.base import load_tokenizer


@pytest.fixture
def config(quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "data.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n:03}番は?"},
                {"role": "assistant", "content": "はい。" * (n % 5 + 1)},
            ]
        }
        for n in range(300)
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    lines[7] = '{"messages": ['
    path.write_text("\n".join(lines), encoding="utf-8")
    return TrainConfig(base_model=str(quick_base), dataset=str(path), max_length=32, heldout_rows=9, skip_bad=1)


def test_the_prompts_are_those_of_held_out_rows_only(config: TrainConfig, quick_base: Path) -> None:
    """Each has its tokens among the held-out windows and not among those trained on; a broken row is no obstacle."""
    tokenizer = load_tokenizer(quick_base)
    prepared = load_training_set(config, tokenizer)
    sha256 = prepared.report.content_sha256
    found = load_heldout_questions(config, tokenizer, sha256, 99)
    assert len(found) == 9
    assert prepared.heldout is not None
    parts = (prepared.heldout, prepared.train)
    kept_out, trained_on = ("".join(tokenizer.decode(piece) for piece in windows.pieces()) for windows in parts)
    wrong = [question for question in found if question not in kept_out or question in trained_on]
    assert wrong == [], kept_out
    assert load_heldout_questions(config, tokenizer, sha256, 2) == found[:2]
    assert load_heldout_questions(config.model_copy(update={"heldout_rows": 0}), tokenizer, sha256, 2) == []
    with pytest.raises(DataError, match="changed since"):
        load_heldout_questions(config, tokenizer, "0" * 64, 2)


def test_text_without_roles_has_no_prompts(config: TrainConfig, quick_base: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(f'{{"text": "{n}番目の文です。"}}\n' for n in range(40)), encoding="utf-8")
    plain = config.model_copy(update={"dataset": str(path)})
    tokenizer = load_tokenizer(quick_base)
    assert load_heldout_questions(plain, tokenizer, load_training_set(plain, tokenizer).report.content_sha256, 3) == []
