"""Tests of notes on files: a file is hashed once, and again as soon as anything shows that it may be another one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.runs import known_hashes, manifest
from aegis.runs.manifest import Manifest, file_sha256, verify_directory
from aegis.runs.publish import publishing

_TICK = 0.03
"""More than a tick of the file system's clock."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"a" * 1000)
    time.sleep(_TICK)
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One item per file that is really read."""
    read: list[int] = []

    def counting(*arguments: bytes) -> object:
        read.append(1)
        return hashlib.new("sha256", *arguments)

    monkeypatch.setattr(manifest.hashlib, "sha256", counting)
    return read


def test_a_file_is_hashed_once_while_notes_are_kept(file: Path, hashed: list[int]) -> None:
    """Control: without notes, and with --paranoid, every time. The notes end with the block; inner ones share them."""
    with known_hashes.trusting():
        first = file_sha256(file)
        with known_hashes.trusting():
            blocks: list[int] = []
            assert file_sha256(file, blocks.append) == first
        assert blocks == [1000]  # a bar over all bytes comes to its end
        assert len(hashed) == 1
        with known_hashes.trusting(paranoid=True):
            assert file_sha256(file) == file_sha256(file) == first
        assert len(hashed) == 3
    assert file_sha256(file) == file_sha256(file) == first
    assert len(hashed) == 5
    with known_hashes.trusting():
        file_sha256(file)
    assert len(hashed) == 6


def _written_in_place(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"b")


def _replaced(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(b"b" + b"a" * 999)
    other.replace(file)


@pytest.mark.parametrize("change", [_written_in_place, _replaced])
def test_a_planted_change_with_size_and_mtime_restored_is_noticed(file: Path, change: Callable[[Path], None]) -> None:
    before = file.stat()
    with known_hashes.trusting():
        first = file_sha256(file)
        change(file)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        now = file.stat()
        assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
        assert file_sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_a_file_that_changes_while_it_is_read_is_not_noted(file: Path, hashed: list[int]) -> None:
    with known_hashes.trusting():
        file_sha256(file, lambda _count: _written_in_place(file))
        file_sha256(file)
        file_sha256(file)
    assert len(hashed) == 2


def test_what_was_hashed_while_it_was_written_is_trusted_after_publishing(tmp_path: Path, hashed: list[int]) -> None:
    """Neither the rename of the folder nor the flush makes another file of it; a wrong hash shows who was believed."""
    made = Manifest("test", {}, {}, {})
    with known_hashes.trusting():
        with publishing(tmp_path / "made", made) as staging:
            (staging.path / "big").write_bytes(b"c" * 10)
            staging.hashed("big", 10, "0" * 64)
            (staging.path / "small").write_bytes(b"d")
        assert len(hashed) == 1  # the small one
        assert verify_directory(tmp_path / "made").files["big"].sha256 == "0" * 64
        assert len(hashed) == 1
    with pytest.raises(manifest.IntegrityError, match="big"):
        verify_directory(tmp_path / "made")
