"""Tests of the blocks that a finish holds: llama.cpp's own, kept in the cache, of one base at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from aegis.llama_cpp import quantize_rows
from aegis.merging.file_blocks import FileBlocks
from aegis.model.base import Base, find_base
from aegis.model.shards import TensorEntry
from aegis.vendored import vendor_llama_cpp


@pytest.fixture
def base(quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    return find_base(str(quick_base))


def wide_entries(base: Base) -> list[TensorEntry]:
    """The matrices whose rows are divisible into super-blocks."""
    return [entry for entry in base.shards.entries.values() if len(entry.shape) == 2 and entry.shape[1] % 256 == 0]


def test_blocks_are_those_of_llama_cpp(base: Base) -> None:
    entry = wide_entries(base)[0]
    rows = entry.read().to(torch.float16).float().numpy()
    made = FileBlocks(base, torch.float16).read(entry, "Q4_K").numpy()
    assert (made == quantize_rows(rows, "Q4_K")).all()
    assert not (made == quantize_rows(rows * 1.01, "Q4_K")).all()


def test_blocks_are_read_from_the_cache_until_a_file_is_cut(base: Base) -> None:
    entry, blocks = wide_entries(base)[0], FileBlocks(base, torch.float16)
    made = blocks.read(entry, "Q4_K")
    (kept,) = blocks.folder.iterdir()
    kept.write_bytes(bytes(made.numel()))
    assert not FileBlocks(base, torch.float16).read(entry, "Q4_K").any()
    kept.write_bytes(b"cut")
    assert (FileBlocks(base, torch.float16).read(entry, "Q4_K") == made).all()


def test_what_is_made_in_the_background_is_there_afterwards(base: Base) -> None:
    wanted, blocks = [(entry, "Q5_K") for entry in wide_entries(base)], FileBlocks(base, torch.float16)
    left = [blocks.folder.parent / "another-base" / "x.Q4_K", blocks.folder / "killed.part"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with blocks.make(wanted) as making:
        making.result()
    assert len(list(blocks.folder.iterdir())) == len(wanted)
    assert not any(path.exists() for path in left)


def test_a_failing_block_ends_the_background_first(base: Base) -> None:
    making = FileBlocks(base, torch.float16).make([(entry, "Q6_K") for entry in wide_entries(base)])
    with pytest.raises(RuntimeError, match="stop"), making:
        raise RuntimeError("stop")
    making.result()


def test_a_cache_that_cannot_be_written_keeps_nothing(base: Base, tmp_path: Path) -> None:
    blocks, entry = FileBlocks(base, torch.float16), wide_entries(base)[0]
    blocks.folder.parent.mkdir(parents=True)
    blocks.folder.touch()  # a file, where a folder should be
    assert blocks.read(entry, "Q4_K").shape[0] == entry.shape[0]
    assert blocks.folder.is_file()


def test_blocks_of_another_llama_cpp_are_not_taken(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = FileBlocks(base, torch.float16).folder
    other = replace(vendor_llama_cpp.load_pin(), sha256="0" * 64)
    monkeypatch.setattr(vendor_llama_cpp, "load_pin", lambda: other)
    assert FileBlocks(base, torch.float16).folder != folder
