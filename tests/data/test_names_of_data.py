"""Tests that no folder is left out silently, and that an empty name is not the current folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.cli.checked_settings import train_settings
from aegis.data.rejects import Rejects
from aegis.data.sources import open_source, refuse_absent
from aegis.errors import UsageError
from aegis.messages import phrase
from aegis.stages import init_config
from tests.conftest import Recorder

LINES = b'{"text": "a"}\n{"text": "b"}\n'
ROWS = [{"text": "a"}, {"text": "b"}]


def values(source: str | Path) -> list[object]:
    return [row.value for row in open_source(source).rows(Rejects("x"))]


def test_folders_within_a_folder_are_named_as_not_read(tmp_path: Path, reporter: Recorder) -> None:
    for name in ("data.jsonl", "sub/more.jsonl", ".hidden/no.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(LINES)
    line = phrase("sources.folders_not_read", path=tmp_path, names="sub", pattern=tmp_path / "**" / "*.jsonl")
    assert values(tmp_path) == ROWS
    assert line in reporter.messages
    reporter.messages.clear()
    assert values(f"{tmp_path}/*") == ROWS
    assert [text for text in reporter.messages if "sub" in text] == [line.replace(str(tmp_path), f"{tmp_path}/*", 1)]
    reporter.messages.clear()
    assert values(f"{tmp_path}/**/*.jsonl") == ROWS * 2
    assert reporter.messages == []


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "data.jsonl").write_bytes(LINES)
    monkeypatch.chdir(tmp_path)
    attempts: list[Callable[[], object]] = [
        lambda: open_source(name),
        lambda: open_source(f"data.jsonl,{name},data.jsonl"),
        lambda: refuse_absent(name),
        lambda: train_settings("demo", None, {"dataset": name}),
        lambda: train_settings("demo", None, {"keep_data": name}),
        lambda: init_config.check("demo", name),
    ]
    for attempt in attempts:
        with pytest.raises(UsageError) as caught:
            attempt()
        assert caught.value.key in ("sources.no_name", "config.invalid")
