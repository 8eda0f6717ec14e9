"""Tests of safetensors read and written in pieces: the library's bytes, and every kind of damage by name."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from aegis.errors import AegisError, IntegrityError, UnsupportedModelError, UsageError
from aegis.model.shard_writer import ShardWriter, write_index
from aegis.model.shards import INDEX, ShardSet, read_header

TENSORS = {
    "half": torch.randn(37, 11, generator=torch.Generator().manual_seed(1)).half(),
    "brain": torch.randn(64, 3, 5, generator=torch.Generator().manual_seed(2)).bfloat16(),
    "full": torch.randn(129, generator=torch.Generator().manual_seed(3)),
    "double": torch.randn(2, 2, generator=torch.Generator().manual_seed(4)).double(),
    "long": torch.arange(24).reshape(6, 4),
    "byte": torch.arange(7, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(1.618),
    "empty": torch.zeros(0, 4),
}


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_files_of_the_safetensors_library_are_read(folder: Path) -> None:
    entries = ShardSet.open(folder).entries
    assert entries.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert same(entries[name].read(), tensor), name
        assert entries[name].bytes == tensor.nbytes


@pytest.mark.parametrize("slab_bytes", [1, 22, 100, 1 << 20])
def test_slabs_cover_every_row_once(folder: Path, slab_bytes: int) -> None:
    """Pieces of any size join into the tensor; each but the last is within the size, or one row."""
    for name, entry in ShardSet.open(folder).entries.items():
        slabs = list(entry.slabs(slab_bytes))
        pieces = [entry.read(start, stop) for start, stop in slabs]
        assert same(torch.cat(pieces) if pieces and entry.shape else entry.read(), TENSORS[name]), name
        for start, stop in slabs:
            assert stop - start == 1 or (stop - start) * entry.bytes // entry.rows <= slab_bytes
    entry = ShardSet.open(folder).entries["half"]
    assert not torch.equal(entry.read(1, 3), TENSORS["half"][0:2])
    assert same(entry.read(1, 3), TENSORS["half"][1:3])


def test_a_read_tensor_has_its_own_memory(folder: Path) -> None:
    entry = ShardSet.open(folder).entries["full"]
    entry.read().zero_()
    assert same(entry.read(), TENSORS["full"])


def test_the_safetensors_library_reads_written_files(tmp_path: Path) -> None:
    """Every dtype, in pieces; size and sha256 are those of the file, known without reading it again."""
    path = tmp_path / "model.safetensors"
    with ShardWriter(path, [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()]) as writer:
        for tensor in TENSORS.values():
            for piece in tensor.split(5) if tensor.ndim and tensor.numel() else [tensor]:
                writer.write(piece)
    assert all(same(tensor, TENSORS[name]) for name, tensor in load_file(path).items())
    assert load_file(path).keys() == TENSORS.keys()
    assert writer.bytes == path.stat().st_size
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    (header_bytes,) = struct.unpack("<Q", path.read_bytes()[:8])
    assert header_bytes % 8 == 0
    assert all(same(entry.read(), TENSORS[name]) for name, entry in ShardSet.open(tmp_path).entries.items())


def test_a_view_is_written_with_its_own_values(tmp_path: Path) -> None:
    tensor = torch.arange(12.0).reshape(3, 4).T
    with ShardWriter(tmp_path / "model.safetensors", [("t", tensor.dtype, tuple(tensor.shape))]) as writer:
        writer.write(tensor)
    assert same(load_file(tmp_path / "model.safetensors")["t"], tensor.contiguous())


def test_a_writer_that_was_given_too_little_or_too_much_fails(tmp_path: Path) -> None:
    for count in (3, 5):
        with (
            pytest.raises(AssertionError, match="announced"),
            ShardWriter(tmp_path / f"{count}", [("t", torch.float32, (4,))]) as writer,
        ):
            writer.write(torch.zeros(count))
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path / "3", [])


def craft(path: Path, header: Any, data: bytes, *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def record(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        (b"", b"", 0),
        (b"{", b"", None),
        (b"[]", b"", None),
        (b"{}", b"", 1 << 40),
        (b"{}", b"", 100),
        ({"a": record("F32", [2], 0, 8)}, b"\0" * 7, None),
        ({"a": record("F32", [2], 0, 8)}, b"\0" * 9, None),
        ({"a": record("F32", [3], 0, 8)}, b"\0" * 8, None),
        ({"a": record("F32", [2], 0, 8), "b": record("F32", [2], 4, 12)}, b"\0" * 12, None),
        ({"a": record("F32", [1], 0, 4), "b": record("F32", [1], 8, 12)}, b"\0" * 12, None),
        ({"a": record("F32", [-1], 0, 4)}, b"\0" * 4, None),
        ({"a": record("F32", [1 << 62, 1 << 62], 0, 4)}, b"\0" * 4, None),
        ({"a": {"dtype": "F32"}}, b"", None),
        ({"a": 3}, b"", None),
        ({"a": record("F99", [1], 0, 4)}, b"\0" * 4, None),
    ],
)
def test_damaged_headers_are_refused(tmp_path: Path, header: object, data: bytes, length: int | None) -> None:
    """Truncated, overlapping, with holes, of wrong or absurd shape, no JSON at all: named, never a traceback."""
    path = craft(tmp_path / "model.safetensors", header, data, length=length)
    with pytest.raises(IntegrityError) as caught:
        read_header(path)
    assert str(path) in caught.value.what


def test_every_truncation_is_noticed(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 4, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(IntegrityError) as caught:
            ShardSet.open(folder)
        assert caught.value.key == "shards.not_whole"


@pytest.mark.parametrize(
    ("content", "shown"), [(b"", "first 8 bytes"), (b"<!DOCTYPE html><title>Sign in</title>", "does not begin")]
)
def test_what_was_downloaded_in_a_weight_files_place_is_described(tmp_path: Path, content: bytes, shown: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(IntegrityError, match=shown):
        ShardSet.open(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened_is_an_error(folder: Path) -> None:
    entry = max(ShardSet.open(folder).entries.values(), key=lambda entry: entry.offset_bytes)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError):
        entry.read()


def test_a_dtype_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="F8_E4M3"):
        ShardSet.open(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.zeros(2), "b": torch.zeros(3)}, tmp_path / "model-1.safetensors")
    save_file({"c": torch.ones(4)}, tmp_path / "model-2.safetensors")
    write_index(
        tmp_path, {"c": "model-2.safetensors", "a": "model-1.safetensors", "b": "model-1.safetensors"}, total_bytes=36
    )
    return tmp_path


def test_shards_are_found_by_their_index(sharded: Path) -> None:
    shards = ShardSet.open(sharded)
    assert [path.name for path in shards.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert [entry.name for entry in shards.in_file(shards.files[0])] == ["a", "b"]
    assert shards.bytes == 36
    assert json.loads((sharded / INDEX).read_text())["metadata"]["total_size"] == 36


def reindex(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize(
    ("weight_map", "shown"),
    [
        ({"a": "../other.safetensors"}, "not a shard of this folder"),
        ({"a": "/etc/passwd"}, "not a shard of this folder"),
        ({"a": "sub/x.safetensors"}, "not a shard of this folder"),
        ({"a": "model.bin"}, "not a shard of this folder"),
        ({"a": 3}, "not a shard of this folder"),
        ({"a": "model-3.safetensors"}, "missing: model-3.safetensors"),
        ({"a": f"{'x' * 300}.safetensors"}, "missing: xxx"),
        ({"a": "model-1.safetensors", "d": "model-2.safetensors"}, "d"),
        ({"a": "model-2.safetensors", "c": "model-2.safetensors"}, "not where it says"),
        ({}, "names no tensors"),
        ([], "damaged"),
        (None, "damaged"),
    ],
)
def test_an_index_that_contradicts_its_files_is_refused(sharded: Path, weight_map: object, shown: str) -> None:
    """A path outside the folder, a shard or a tensor that is not there: named before anything is loaded."""
    reindex(sharded, weight_map)
    with pytest.raises(IntegrityError) as caught:
        ShardSet.open(sharded)
    assert shown in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000])
def test_a_damaged_index_is_refused(sharded: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(IntegrityError, match="damaged"):
        ShardSet.open(sharded)


def test_a_tensor_in_two_files_is_refused(sharded: Path) -> None:
    save_file({"a": torch.ones(2), "c": torch.ones(4)}, sharded / "model-2.safetensors")
    with pytest.raises(IntegrityError, match=r"a is in two files: model-1\.safetensors and model-2\.safetensors"):
        ShardSet.open(sharded)


def test_a_single_file_beside_shards_is_refused(sharded: Path) -> None:
    """transformers would train on the one, and the merge would read the others."""
    save_file({"a": torch.ones(2)}, sharded / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"holds model\.safetensors and shards"):
        ShardSet.open(sharded)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="no safetensors weights"):
        ShardSet.open(tmp_path)
    with pytest.raises(UsageError, match="no file"):
        read_header(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(AegisError):
        read_header(tmp_path / "folder.safetensors")
