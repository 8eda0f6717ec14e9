"""Tests of llama.cpp's findings: the converter byte for byte, the binding by version, hash and loading."""

from __future__ import annotations

import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

import vendor_llama_cpp
from aegis.doctor import llama
from aegis.doctor.cures import install
from aegis.doctor.finding import Finding


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the pinned converter in a separate cache."""
    tree = vendor_llama_cpp.converter_tree()
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path))
    return Path(shutil.copytree(tree, tmp_path / "llama.cpp" / tree.name))


def test_the_pinned_converter_passes(kept: Path) -> None:
    found = only(llama.converter())
    assert (found.state, str(kept) in found.detail, "sha256 as pinned" in found.detail) == ("ok", True, True)


@pytest.mark.parametrize("damage", ["gone", "changed", "a file missing", "a file more"])
def test_a_converter_that_differs_from_the_pinned_one_is_reported(kept: Path, damage: str) -> None:
    script = kept / "convert_hf_to_gguf.py"
    if damage == "gone":
        shutil.rmtree(kept)
    elif damage == "changed":
        script.write_bytes(script.read_bytes() + b"\n")
    elif damage == "a file missing":
        script.unlink()
    else:
        (kept / "more.py").touch()
    before = sorted(kept.rglob("*"))
    found = only(llama.converter())
    assert (found.state, found.cure) == ("fail", f"{sys.executable} -m vendor_llama_cpp")
    assert sorted(kept.rglob("*")) == before  # reported, not mended: nothing is fetched here


def test_the_users_own_llama_cpp_checkout_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    assert only(llama.converter()).state == "fail"
    (tmp_path / "convert_hf_to_gguf.py").touch()
    assert only(llama.converter()).state == "ok"


def test_the_installed_binding_passes() -> None:
    found = only(llama.binding())
    assert (found.state, "as pinned" in found.detail) == ("ok", True)


def test_a_missing_binding_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "find_spec", lambda _: None)
    found = only(llama.binding())
    assert (found.state, found.cure) == ("fail", install("llama-cpp-python==0.3.36"))


def test_a_changed_library_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip's own record says what was installed."""
    folder = tmp_path / "llama_cpp" / "lib"
    folder.mkdir(parents=True)
    (folder / "libllama.so").write_bytes(b"other")
    info = tmp_path / "llama_cpp_python-0.3.36.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 0.3.36\n", encoding="utf-8")
    (info / "RECORD").write_text("llama_cpp/lib/libllama.so,sha256=AAAA,5\n", encoding="utf-8")
    monkeypatch.setattr(llama.metadata, "distribution", lambda _: metadata.PathDistribution(info))
    found = only(llama.binding())
    assert (found.state, "libllama.so" in found.detail) == ("fail", True)
    text = (info / "METADATA").read_text(encoding="utf-8").replace("0.3.36", "0.3.30")
    (info / "METADATA").write_text(text, encoding="utf-8")
    assert "but 0.3.36 is pinned" in only(llama.binding()).detail
