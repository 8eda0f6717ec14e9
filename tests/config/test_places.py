"""Tests of which settings may name a place on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from aegis.config.places import place_settings
from aegis.data.sources import public_name


def test_paths_and_what_may_be_one_are_places() -> None:
    assert {
        "base_model",
        "dataset",
        "keep_data",
        "chat_template",
        "imatrix",
        "text",
        "llama_cpp_dir",
    } == place_settings()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("owner/rows", "owner/rows"),
        ("demo", "demo"),
        ("/home/someone/mine.jsonl", "mine.jsonl"),
        ("/home/someone/a.jsonl, /home/someone/b.jsonl", "a.jsonl,b.jsonl"),
        ("~/data/*.jsonl.gz", "*.jsonl.gz"),
        (str(Path.home()), Path.home().name),
    ],
)
def test_a_local_path_is_shown_as_its_last_part(name: str, shown: str) -> None:
    assert public_name(name) == shown
