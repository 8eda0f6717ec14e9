"""Tests that a model folder has only its own files, so that no other file of this machine is read or removed."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import pytest

from aegis.errors import AegisError, IntegrityError
from aegis.model.base import find_base, hash_weights, peek_base, read_config
from aegis.model.safe_folder import check_own_files
from aegis.model.shards import ShardSet

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links ask for rights there")
PRECIOUS = "hf_precious"


@pytest.fixture
def base(quick_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(quick_base, tmp_path / "base"))


@pytest.fixture
def cached(quick_base: Path, tmp_path: Path) -> Path:
    """Return the base as in the Hub's cache: links to blobs whose names are their sha256."""
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in quick_base.iterdir():
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        (snapshot / path.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "tokenizer.json", "config.json", "model.safetensors", "x/y"])
def test_a_link_out_of_the_folder_is_refused_at_any_depth(base: Path, tmp_path: Path, name: str) -> None:
    precious = tmp_path / "token"
    precious.write_text(PRECIOUS)
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(precious)
    for find in (lambda: find_base(str(base)), lambda: peek_base(str(base)).__enter__(), lambda: read_config(base)):
        with pytest.raises(IntegrityError) as refused:
            find()
        assert refused.value.key == "base.link_leads_out"
    assert precious.read_text() == PRECIOUS


@pytest.mark.parametrize("target", ["..", "/", "../../../elsewhere", "circle"])
def test_links_to_another_folder_in_a_circle_or_to_a_missing_file_are_refused(base: Path, target: str) -> None:
    (base / "circle").symlink_to(target)
    with pytest.raises(IntegrityError) as refused:
        find_base(str(base))
    assert refused.value.key == "base.link_leads_out"


def test_links_inside_the_folder_and_a_folder_that_is_itself_a_link_are_accepted(base: Path, tmp_path: Path) -> None:
    (base / "LICENSE").write_text("mine")
    (base / "NOTICE").symlink_to("LICENSE")
    (tmp_path / "called").symlink_to(base)
    assert find_base(str(tmp_path / "called")).folder == base.resolve()


def test_a_base_in_the_hubs_cache_links_to_its_own_blobs_and_to_no_other_file(cached: Path, tmp_path: Path) -> None:
    assert find_base(str(cached)).weights_hash
    (tmp_path / "token").write_text(PRECIOUS)
    blob = (cached / "README.md").resolve() if (cached / "README.md").exists() else cached.parent.parent / "blobs" / "x"
    blob.unlink(missing_ok=True)
    blob.symlink_to(tmp_path / "token")
    (cached / "README.md").unlink(missing_ok=True)
    (cached / "README.md").symlink_to(blob)
    with pytest.raises(IntegrityError) as refused:
        find_base(str(cached))
    assert refused.value.key == "base.link_leads_out"


def test_a_damaged_blob_of_the_cache_is_removed_so_that_it_is_downloaded_again(cached: Path) -> None:
    blob = (cached / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(IntegrityError) as refused:
        hash_weights(ShardSet.open(cached))
    assert refused.value.key == "base.spoiled_download"
    assert not blob.exists()


@pytest.mark.parametrize("place", ["outside", "beside"])
def test_a_folder_that_only_looks_like_a_cache_loses_no_file(base: Path, tmp_path: Path, place: str) -> None:
    blobs = (tmp_path if place == "outside" else base) / "blobs"
    blobs.mkdir()
    blob = blobs / ("ab" * 32)
    (base / "model.safetensors").rename(blob)
    (base / "model.safetensors").symlink_to(blob)
    try:
        hash_weights(ShardSet.open(base))
        find_base(str(base))
    except AegisError as error:
        assert (place, error.key) == ("outside", "base.link_leads_out")  # noqa: PT017 (either may come)
    assert blob.is_file()
    assert (base / "model.safetensors").is_symlink()


def test_a_pipe_in_the_folder_is_refused_without_waiting(base: Path) -> None:
    (base / "config.json").unlink()
    os.mkfifo(base / "config.json")
    with pytest.raises(IntegrityError) as refused:
        find_base(str(base))
    assert refused.value.key == "base.no_regular_file"


def test_an_ordinary_folder_is_accepted(base: Path) -> None:
    check_own_files(base)
