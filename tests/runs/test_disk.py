"""Tests of disk space: it is checked before the work, and a full disk is an error with a fix."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from aegis.errors import EnvironmentFault, UsageError
from aegis.runs import disk


def test_free_space_is_measured_where_the_output_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory need not be there yet: the first parent that is there has the disk."""
    asked: list[Path] = []
    usage = shutil.disk_usage(tmp_path)._replace(free=999)

    def looked(path: Path) -> object:
        asked.append(path)
        return usage

    monkeypatch.setattr(shutil, "disk_usage", looked)
    disk.require_space(tmp_path / "not" / "yet", 999, "the model")
    with pytest.raises(EnvironmentFault) as caught:
        disk.require_space(tmp_path / "not" / "yet", 1000, "the model")
    assert str(caught.value).startswith("not enough disk space for the model: 1 kB needed, 999 B free")
    assert str(tmp_path) in caught.value.fix
    assert set(asked) == {tmp_path}


@pytest.mark.parametrize("system", ["this one", "without posix_fallocate"])
def test_a_file_gets_all_of_its_room_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str) -> None:
    if system == "without posix_fallocate":
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "states").open("w+b") as file:
        disk.reserve(file, 1 << 20, tmp_path)
        status = os.fstat(file.fileno())
        assert status.st_size == 1 << 20
        if hasattr(os, "posix_fallocate"):
            assert status.st_blocks * 512 >= 1 << 20
    with (tmp_path / "beyond").open("w+b") as file:
        with pytest.raises(OSError, match="No space left") as caught:
            disk.reserve(file, 2 * shutil.disk_usage(tmp_path).total, tmp_path)
        assert disk.is_full(caught.value)
        assert os.fstat(file.fileno()).st_size == 0


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (OSError(errno.EFBIG, "x"), True),
        (OSError(errno.EACCES, "(os error 28)"), False),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("I/O error: There is not enough space on the disk. (os error 112)"), True),
        (SafetensorError("I/O error: Permission denied (os error 13)"), False),
        (ValueError("28"), False),
    ],
)
def test_every_error_code_of_a_full_disk_is_recognized(error: Exception, full: bool) -> None:
    assert disk.is_full(error) is full


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1e3, "1 kB"), (5.4e7, "54 MB"), (7.64e9, "7.64 GB")]
)
def test_sizes_are_shown_in_units_for_people(count: float, text: str) -> None:
    assert disk.format_bytes(count) == text


def test_a_gguf_has_float32_vectors_and_rows_that_no_block_divides_in_16_bits() -> None:
    shapes = [(4, 64), (4, 80), (64,)]
    rest = disk.gguf_bytes([], 1000, ["F16"])
    assert rest > 1000
    for quant, matrices in (("F16", 2 * 256 + 2 * 320), ("Q4_K_M", 272 + 2 * 320), ("F32", 4 * 256 + 4 * 320)):
        assert disk.gguf_bytes(iter(shapes), 1000, [quant]) == rest + matrices + 4 * 64
    assert disk.gguf_bytes(shapes, 1000, ["F16", "Q8_0"]) == 2 * rest + 2 * 256 + 272 + 4 * 320 + 2 * 4 * 64


def test_the_cache_is_in_the_directory_that_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "a" / "キャッシュ"))
    assert disk.cache_directory() == (tmp_path / "a" / "キャッシュ").resolve()
    assert disk.cache_directory().is_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="cannot be used as the cache"):
        disk.cache_directory()
