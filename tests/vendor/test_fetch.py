"""Tests that only the pinned bytes are unpacked, and that pip runs nothing of an unchecked sdist."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import tarfile
import threading
import time
import venv
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import vendor_llama_cpp
from vendor_llama_cpp import VendorError
from vendor_llama_cpp import __main__ as screen
from vendor_llama_cpp.cache import ensure_tree
from vendor_llama_cpp.listener import Silent
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


class Heard:
    """Records a listener's events."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.bytes: list[int] = []

    def step(self, name: str, text: str) -> None:
        self.steps.append(name)

    def fetched(self, more_bytes: int) -> None:
        self.bytes.append(more_bytes)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is pip's only index; its sdist can be built without a network."""
    directory = tmp_path / "index"
    directory.mkdir()
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "AEGIS_LLAMA_SDIST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if Path("/dev/null").exists() else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


@pytest.fixture
def slow_index(index: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same directory behind a server that sends a file slowly in eight parts."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/index/"):
                links = (f'<a href="/files/{path.name}">{path.name}</a>' for path in index.iterdir())
                parts = [f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()]
            else:
                data = (index / Path(self.path).name).read_bytes()
                parts = [data[at : at + len(data) // 8 + 1] for at in range(0, len(data), len(data) // 8 + 1)]
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if len(parts) == 1 else "application/octet-stream")
            self.send_header("Content-Length", str(sum(map(len, parts))))
            self.end_headers()
            for part in parts:
                self.wfile.write(part)
                self.wfile.flush()
                time.sleep(0.0 if len(parts) == 1 else 0.3)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/index")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield index
    server.shutdown()
    thread.join()
    server.server_close()


def build_sdist(index: Path, sentinel: Path, ballast: bytes = b"") -> Pin:
    pyproject = b'[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    members = (
        member("llama_nine-9/pyproject.toml", pyproject)
        + member("llama_nine-9/backend.py", BACKEND.format(sentinel=str(sentinel)).encode())
        + member("llama_nine-9/PKG-INFO", b"Metadata-Version: 2.1\nName: llama-nine\nVersion: 9\n")
    )
    members += member("llama_nine-9/ballast", ballast)
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
    heard = Heard()
    tree = ensure_tree(pin, heard)
    assert (tree / "conversion" / "base.py").read_bytes() == b"pass\n"
    assert sentinel.exists()
    assert heard.steps == ["download", "check", "unpack"]
    assert sum(heard.bytes) == pin.size_bytes
    assert [tree] == list(cache.iterdir())


def test_the_download_is_reported_while_it_runs(cache: Path, slow_index: Path, tmp_path: Path) -> None:
    pin = build_sdist(slow_index, tmp_path / "sentinel", random.Random(0).randbytes(1 << 21))
    heard = Heard()
    ensure_tree(pin, heard)
    assert len(heard.bytes) > 3
    assert sum(heard.bytes) == pin.size_bytes
    assert len(list(cache.iterdir())) == 1


def test_the_download_has_a_total_on_a_terminal(
    cache: Path, slow_index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m vendor_llama_cpp`, which the set-up runs: lines now and then, as it writes to a log."""
    pin = build_sdist(slow_index, tmp_path / "sentinel", random.Random(0).randbytes(1 << 21))
    monkeypatch.setattr(vendor_llama_cpp, "load_pin", lambda: pin)
    monkeypatch.setattr(screen, "load_pin", lambda: pin)
    monkeypatch.setattr(screen, "_LINE_SECONDS", 0.5)
    assert screen.main() == 0
    shown = capsys.readouterr()
    first, *lines = shown.err.splitlines()
    assert first.startswith("Downloading llama_nine-9.tar.gz with pip")
    assert [line for line in lines if re.fullmatch(r"\d of 2 MB, about \d+ s left", line)]
    assert lines[-2:] == ["Checking llama_nine-9.tar.gz", "Unpacking llama.cpp's converter"]
    assert Path(shown.out.strip()).parent == cache


def test_a_closed_progress_pipe_is_not_reported_as_a_fault_of_the_cache(
    cache: Path, index: Path, tmp_path: Path
) -> None:
    class Unread(Silent):
        def step(self, name: str, text: str) -> None:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        ensure_tree(build_sdist(index, tmp_path / "sentinel"), Unread())
    assert list(cache.iterdir()) == []


def test_pip_runs_nothing_of_an_sdist_with_another_hash(cache: Path, index: Path, tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    pin = replace(build_sdist(index, sentinel), sha256="0" * 64)
    with pytest.raises(VendorError) as caught:
        ensure_tree(pin, Silent())
    assert caught.value.kind == "hash"
    assert not sentinel.exists()
    assert list(cache.iterdir()) == []


def test_an_index_without_it_is_a_fetch_error_with_pips_words(cache: Path, index: Path) -> None:
    pin = replace(build_sdist(index, index / "sentinel"), distribution="llama-ten")
    with pytest.raises(VendorError, match="No matching distribution") as caught:
        ensure_tree(pin, Silent())
    assert caught.value.kind == "fetch"
    assert "AEGIS_LLAMA_SDIST" in caught.value.fix


def test_a_given_sdist_with_one_flipped_bit_is_refused(cache: Path, sdist: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    data = bytearray(sdist.read_bytes())
    data[len(data) // 2] ^= 1
    sdist.write_bytes(data)
    with pytest.raises(VendorError, match=hashlib.sha256(data).hexdigest()) as caught:
        ensure_tree(pin, Silent())
    assert caught.value.kind == "hash"
    assert list(cache.iterdir()) == []
    assert sdist.exists()


def test_a_given_sdist_that_does_not_exist_is_named(cache: Path, sdist: Path, pinned: PinnedArchive) -> None:
    pin = pinned(honest())
    sdist.unlink()
    with pytest.raises(VendorError, match=r"llama-9\.tar\.gz") as caught:
        ensure_tree(pin, Silent())
    assert caught.value.kind == "fetch"


def test_an_environment_without_pip_has_its_own_fix(
    cache: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As uv makes them; the network is not to blame."""
    bare = tmp_path / "bare"
    venv.EnvBuilder(with_pip=False, symlinks=os.name != "nt").create(bare)
    python = bare / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr("vendor_llama_cpp.fetch.sys.executable", str(python))
    pin = build_sdist(index, tmp_path / "sentinel")
    with pytest.raises(VendorError) as caught:
        ensure_tree(pin, Silent())
    assert caught.value.code == "fetch.no_pip"
    assert f"--python {python} pip" in caught.value.fix
