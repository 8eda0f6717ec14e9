"""Tests of tokens on disk: they are read back unchanged, by several readers at once, and a full disk is reported."""

from __future__ import annotations

import errno
import gc
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aegis.data.tokens import CODE, TokenFile, encoded, ids_of
from aegis.errors import EnvironmentFault


def test_one_array_has_the_ids_and_the_mask() -> None:
    """Token 0 too, which has no negative."""
    ids, trained = np.array([0, 0, 7, 131071], np.int32), np.array([True, False, False, True])
    codes = encoded(ids, trained)
    assert codes.dtype == CODE
    assert ids_of(codes).tolist() == ids.tolist()
    assert (codes >= 0).tolist() == trained.tolist()


def test_appended_tokens_are_read_back_from_memory_and_disk(tmp_path: Path) -> None:
    """Across many writes to the disk, by several threads at once."""
    file = TokenFile.unnamed(tmp_path)
    lengths = np.random.default_rng(0).integers(0, 5000, 400)
    for number, length in enumerate(lengths.tolist()):
        file.append(np.arange(number, number + length, dtype=np.int32))
        if number == 200:
            assert (
                file.read(0, 3).tolist()
                == np.concatenate([np.arange(n, n + lengths[n]) for n in (0, 1, 2)])[:3].tolist()
            )
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    assert len(file) == edges[-1]

    def right(number: int) -> bool:
        wanted = np.arange(number, number + lengths[number])
        return bool(np.array_equal(file.read(edges[number], edges[number + 1]), wanted))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(right, [*range(len(lengths))] * 3))


def test_the_file_has_no_name_and_is_closed_with_its_last_reader(tmp_path: Path) -> None:
    file = TokenFile.unnamed(tmp_path / "new")
    file.append(np.zeros(1 << 20, np.int32))
    if os.name != "nt":  # Windows shows it until it is closed
        assert list((tmp_path / "new").iterdir()) == []
    handle = (tmp_path / "kept").open("xb", buffering=0)
    file = TokenFile(handle, tmp_path)
    assert not handle.closed
    del file
    gc.collect()
    assert handle.closed


def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    class Full(io.RawIOBase):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def seek(self, *_: int) -> int:
            return 0

    file = TokenFile(Full(), tmp_path)
    file.append(np.zeros(10, np.int32))
    with pytest.raises(EnvironmentFault) as caught:
        file.read(0, 10)
    assert caught.value.key == "tokens.disk"
    with pytest.raises(EnvironmentFault) as caught:
        file.append(np.zeros(1 << 20, np.int32))
    assert caught.value.key == "tokens.disk"


def test_a_file_that_became_shorter_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(np.arange(10, dtype=CODE).tobytes())
    file = TokenFile(path.open("rb", buffering=0), tmp_path, offset=8, count=8)
    assert file.read(0, 8).tolist() == [*range(2, 10)]
    os.truncate(path, 20)
    assert file.read(0, 3).tolist() == [2, 3, 4]
    with pytest.raises(EnvironmentFault) as caught:
        file.read(0, 4)
    assert caught.value.key == "tokens.disk"
    assert "ends too soon" in caught.value.why
