"""Fixtures: a tiny stand-in for the sdist, sound or hostile, and the pin that names it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vendor_llama_cpp.pin import Pin, digest, load_pin

ROOT = "llama-9/vendor/llama.cpp/"
FILES = {
    "LICENSE": b"MIT",
    "convert_hf_to_gguf.py": b"import conversion\n",
    "conversion/__init__.py": b"from . import base\n",
    "conversion/base.py": b"pass\n",
    "gguf-py/gguf/__init__.py": b"",
}

Members = list[tuple[tarfile.TarInfo, bytes]]
PinnedArchive = Callable[[Members], Pin]


def member(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "") -> Members:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return [(info, data)]


def honest() -> Members:
    members = member("llama-9/PKG-INFO", b"not wanted") + member(ROOT + "conversion/deep/no.py", b"nor this")
    for path, data in FILES.items():
        members += member(ROOT + path, data)
    return members


@pytest.fixture
def sdist(tmp_path: Path) -> Path:
    return tmp_path / "given" / "llama-9.tar.gz"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sdist: Path) -> Path:
    """Return an empty cache in which a test can look for stray files; the sdist is given by path."""
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AEGIS_LLAMA_SDIST", str(sdist))
    return tmp_path / "cache" / "llama.cpp"


@pytest.fixture
def pinned(sdist: Path) -> PinnedArchive:
    """Write the members to the sdist, and return a pin of exactly these bytes."""

    def write(members: Members) -> Pin:
        sdist.parent.mkdir(exist_ok=True)
        with tarfile.open(sdist, "w:gz") as archive:
            for info, data in members:
                archive.addfile(info, io.BytesIO(data))
        return pin_for(sdist)

    return write


def pin_for(sdist: Path) -> Pin:
    data = sdist.read_bytes()
    tree = digest({path: hashlib.sha256(contents).hexdigest() for path, contents in FILES.items()})
    return replace(
        load_pin(),
        sdist=sdist.name,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        root=ROOT,
        tree_sha256=tree,
    )
