"""Tests of a training's kept text: from the base, from the user, or both, and from the cache once written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aegis.config.train_settings import TrainConfig
from aegis.data.kept import Kept
from aegis.errors import DataError
from aegis.model.base import Base, load_tokenizer
from aegis.training.keep import sources as module
from aegis.training.keep.sources import load_kept
from tests.conftest import Recorder
from tests.trained import write_chats

pytestmark = pytest.mark.usefixtures("cache")

CPU = torch.device("cpu")
CONFIG = TrainConfig(keep_windows=8, max_length=32)


def load(base: Path, **changes: Any) -> Kept | None:
    config = TrainConfig.model_validate(CONFIG.model_dump() | changes)
    return load_kept(config, Base(str(base), base, None), load_tokenizer(base), CPU)


def test_a_base_writes_once_and_is_read_from_the_cache_after(
    quick_base: Path, cache: Path, reporter: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(quick_base)
    assert first is not None
    assert (len(first.train), len(first.heldout), first.report.source) == (7, 1, "written")
    assert first.report.texts > 0
    assert first.report.precision == "16bit"
    assert str(first.report.texts) in reporter.messages[-1]
    monkeypatch.setattr(module, "_write", lambda *_: pytest.fail("the cache was not looked at"))
    again = load(quick_base)
    assert again is not None
    assert again.sha256 == first.sha256
    # the training's seed is none of the text's business; a window's length is
    assert load(quick_base, seed=7).sha256 == first.sha256  # type: ignore[union-attr]
    with pytest.raises(pytest.fail.Exception):
        load(quick_base, max_length=40)
    assert len(list((cache / "kept").glob("*.windows"))) == 1


def first_tokens(found: Kept | None) -> list[int]:
    assert found is not None
    return [int(ids[0]) for part in (found.train, found.heldout) for ids in part.batch(range(len(part))).input_ids]


def test_half_of_the_windows_are_chats_unless_documents_alone_are_wanted(quick_base: Path) -> None:
    """In turns, so that the held-out ones are of both kinds as well; the two choices do not share the cache."""
    tokenizer = load_tokenizer(quick_base)
    user, bos = tokenizer.convert_tokens_to_ids("<|user|>"), tokenizer.bos_token_id
    assert first_tokens(load(quick_base, keep_windows=16)) == [user, bos] * 8
    assert first_tokens(load(quick_base, keep_windows=16, keep_chats=False)) == [bos] * 16


def test_a_damaged_cache_is_written_again(quick_base: Path, cache: Path) -> None:
    first = load(quick_base)
    (path,) = (cache / "kept").glob("*.windows")
    path.write_bytes(path.read_bytes()[:-9])
    again = load(quick_base)
    assert first is not None
    assert again is not None
    assert again.sha256 == first.sha256


def test_the_users_data_is_kept_instead_of_written_text_or_in_addition(
    quick_base: Path, tmp_path: Path, reporter: Recorder
) -> None:
    data = write_chats(tmp_path / "kept.jsonl")
    found = load(quick_base, keep_data=str(data))
    assert found is not None
    assert found.report.source == "data"
    assert found.report.texts == 0
    both = load(quick_base, keep_data=str(data), keep_source="both")
    assert both is not None
    assert both.report.source == "both"
    assert (len(both.train), len(both.heldout)) == (6, 2)
    assert both.report.texts > 0


def test_too_little_text_is_refused_and_less_than_asked_for_is_reported(
    quick_base: Path, tmp_path: Path, reporter: Recorder
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("春です。", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(quick_base, keep_data=str(short))
    assert caught.value.args[0] == "keep.too_little"
    data = write_chats(tmp_path / "kept.jsonl")
    found = load(quick_base, keep_data=str(data), keep_windows=512)
    assert found is not None
    assert found.report.windows < 448
    assert any("instead of 512" in text for text in reporter.warned)


def test_nothing_is_kept_if_keep_is_switched_off(quick_base: Path, cache: Path) -> None:
    assert load(quick_base, keep_weight=0.0) is None
    assert not (cache / "kept").exists()
