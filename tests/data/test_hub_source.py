"""Tests that data sets of the datasets library are read as they are stored, under the hash of their rows."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from pathlib import Path

import pytest

from aegis.data.rejects import Rejects
from aegis.data.sources import open_source
from aegis.errors import UsageError

ROWS: list[dict[str, object]] = [{"question": f"Hi {n}?", "answer": f"行\n{n}"} for n in range(5)]


def values(source: Path) -> list[object]:
    return [row.value for row in open_source(source).rows(Rejects(str(source)))]


def test_a_folder_written_by_save_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(str(tmp_path / "split"))
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "split") == ROWS
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "untrained"))
    with pytest.raises(UsageError, match="no split 'train'"):
        open_source(tmp_path / "untrained")


def saved_with_pictures(folder: Path, picture: bytes) -> list[dict[str, object]]:
    """Write a data set with media in a folder, and return its rows as they are stored."""
    import datasets

    media = {"image": datasets.Image(), "clips": datasets.List(datasets.Audio())}
    kinds = datasets.Features({"text": datasets.Value("string"), **media, "extra": datasets.Json()})
    stored = {"bytes": picture, "path": None}
    rows = [{"text": text, "image": stored, "clips": [stored], "extra": {"a": [1]}} for text in ("one", "two")]
    plain = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    kept = kinds | {"image": plain["image"], "clips": datasets.List(plain["image"])}
    datasets.Dataset.from_list(rows, features=datasets.Features(kept)).cast(kinds).save_to_disk(str(folder))
    return rows


@pytest.mark.parametrize("picture", ["whole", "broken"])
def test_media_of_a_saved_data_set_are_read_as_stored(tmp_path: Path, picture: str) -> None:
    """No decoder is needed for what nothing trains on, and two reads of a picture are equal."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "png")
    rows = saved_with_pictures(tmp_path / "data", buffer.getvalue() if picture == "whole" else b"no picture")
    source = open_source(tmp_path / "data")
    assert source.sha256() == open_source(tmp_path / "data").sha256()
    assert [row.value for row in source.rows(Rejects("x"))] == rows


def test_the_hash_of_a_saved_data_set_is_that_of_its_rows(tmp_path: Path) -> None:
    """Caches and checkpoints know their data by it."""
    import datasets

    day = datetime.datetime(2026, 1, 2, 3, 4, 5, 6)
    rows = [
        {"text": "あ", "n": n, "half": 0.5, "nested": [{"a": [None, "b"]}], "day": day, "none": None} for n in (1, 2)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    lines = [json.dumps(row, sort_keys=True, default=str).encode() + b"\n" for row in rows]
    assert open_source(tmp_path / "data").sha256() == hashlib.sha256(b"".join(lines)).hexdigest()


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 100_000, '{"_data_files": [{"filename": "data.arrow"}]}'])
@pytest.mark.parametrize("name", ["state.json", "dataset_dict.json"])
def test_the_file_that_makes_a_folder_one_of_save_to_disk_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    (tmp_path / "data.arrow").write_bytes(b"no")
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        open_source(tmp_path)
    assert caught.value.key == "sources.not_saved"
    assert f"{name} is another program's, move it" in caught.value.fix
    (tmp_path / name).unlink()
    (tmp_path / "dataset_info.json").unlink()
    assert values(tmp_path) == [{"text": "a"}]
