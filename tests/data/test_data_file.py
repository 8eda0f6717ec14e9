"""Tests that a data file is read as it was hashed, block by block, or not at all."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from aegis.data import data_file
from aegis.data.data_file import DataFile
from aegis.errors import DataError

CONTENT = bytes(range(256)) * 10


@pytest.fixture
def hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataFile:
    monkeypatch.setattr(data_file, "_BLOCK_BYTES", 1000)
    path = tmp_path / "data"
    path.write_bytes(CONTENT)
    return DataFile(path, DataFile(path).hashes().blocks)


def whole(data: DataFile) -> bytes:
    with io.BufferedReader(data.open(), 64) as file:
        return file.read()


def test_the_hash_of_a_file_is_its_sha256(hashed: DataFile) -> None:
    assert hashed.hashes().sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert len(hashed.hashes().blocks) == 3


def test_an_unchanged_file_is_read_from_any_place(hashed: DataFile) -> None:
    with io.BufferedReader(hashed.open(), 64) as file:
        assert file.read() == CONTENT
        for place in (0, 999, 1000, 2559, 2560, 5000):
            file.seek(place)
            assert file.read(7) == CONTENT[place : place + 7]
        file.seek(-5, io.SEEK_END)
        assert (file.tell(), file.read()) == (len(CONTENT) - 5, CONTENT[-5:])


@pytest.mark.parametrize("change", ["first", "last", "longer", "shorter", "empty", "a block shorter"])
def test_a_changed_file_is_refused_where_it_changed(hashed: DataFile, change: str) -> None:
    other = {
        "first": b"x" + CONTENT[1:],
        "last": CONTENT[:-1] + b"x",
        "longer": CONTENT + b"x",
        "shorter": CONTENT[:-1],
        "empty": b"",
        "a block shorter": CONTENT[:2000],
    }[change]
    hashed.path.write_bytes(other)
    with pytest.raises(DataError) as caught:
        whole(hashed)
    assert caught.value.key == "dataset.changed"
    assert whole(DataFile(hashed.path)) == other, "the control: without the hashes it is read as it is now"


def test_a_file_that_changes_behind_the_reader_is_refused_at_the_next_block(hashed: DataFile) -> None:
    with hashed.open() as file:
        assert file.read(10) == CONTENT[:10]
        hashed.path.write_bytes(b"x" * len(CONTENT))
        assert file.read(2000) == CONTENT[10:1000], "a block in memory is the one that was hashed"
        with pytest.raises(DataError):
            file.read(1)
