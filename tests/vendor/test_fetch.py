"""Only the pinned bytes are unpacked, and pip runs nothing of the sdist before it knows them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from vendor_llama_cpp import VendorError
from vendor_llama_cpp.cache import ensure_tree
from vendor_llama_cpp.pin import Pin

from .conftest import FILES, ROOT, PinnedArchive, honest, member, pin_for

BACKEND = """
from pathlib import Path
Path({sentinel!r}).write_text("the build backend ran")
def prepare_metadata_for_build_wheel(directory, settings=None):
    info = Path(directory) / "llama_nine-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llama-nine\\nVersion: 9\\n")
    return info.name
def build_wheel(*args, **kwargs):
    raise NotImplementedError
"""


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory pip takes for its only index; the sdist in it can be built without a network."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "AEGIS_LLAMA_SDIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if Path("/dev/null").exists() else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def build_sdist(index: Path, sentinel: Path) -> Pin:
    pyproject = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    members = (
        member("llama_nine-9/pyproject.toml", pyproject)
        + member("llama_nine-9/backend.py", BACKEND.format(sentinel=str(sentinel)).encode())
        + member("llama_nine-9/PKG-INFO", b"Metadata-Version: 2.1\nName: llama-nine\nVersion: 9\n")
    )
    for path, data in FILES.items():
        members += member(f"llama_nine-9/vendor/llama.cpp/{path}", data)
    sdist = index / "llama_nine-9.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    pin = pin_for(sdist)
    return replace(pin, distribution="llama-nine", version="9", root=f"llama_nine-9/{ROOT.split('/', 1)[1]}")


def test_the_sdist_comes_through_pip_from_the_users_own_index(cache: Path, index: Path, tmp_path: Path) -> None:
    """Also the control of the next test: with the right hash pip does run the backend, so it could have."""
    sentinel = tmp_path / "sentinel"
    pin = build_sdist(index, sentinel)
    said: list[str] = []
    tree = ensure_tree(pin, said.append)
    assert (tree / "conversion" / "base.py").read_bytes() == b"pass\n"
    assert sentinel.exists()
    assert any("Downloading" in text for text in said)
    assert [tree] == list(cache.iterdir())


def test_pip_runs_nothing_of_an_sdist_with_another_hash(cache: Path, index: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    pin = replace(build_sdist(index, sentinel), sha256="0" * 64)
    with pytest.raises(VendorError) as caught:
        ensure_tree(pin, lambda text: None)
    assert caught.value.kind == "hash"
    assert not sentinel.exists()
    assert list(cache.iterdir()) == []


def test_an_index_without_it_is_a_fetch_error_with_pips_words(cache: Path, index: Path) -> None:
    pin = replace(build_sdist(index, index / "sentinel"), distribution="llama-ten")
    with pytest.raises(VendorError, match="No matching distribution") as caught:
        ensure_tree(pin, lambda text: None)
    assert caught.value.kind == "fetch"
    assert "AEGIS_LLAMA_SDIST" in caught.value.fix


def test_a_given_sdist_with_one_flipped_bit_is_refused(cache: Path, sdist: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    data = bytearray(sdist.read_bytes())
    data[len(data) // 2] ^= 1
    sdist.write_bytes(data)
    with pytest.raises(VendorError, match=hashlib.sha256(data).hexdigest()) as caught:
        ensure_tree(pin, lambda text: None)
    assert caught.value.kind == "hash"
    assert list(cache.iterdir()) == []
    assert sdist.exists()


def test_a_given_sdist_that_is_not_there_is_named(cache: Path, sdist: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    sdist.unlink()
    with pytest.raises(VendorError, match=r"llama-9\.tar\.gz") as caught:
        ensure_tree(pin, lambda text: None)
    assert caught.value.kind == "fetch"
