"""Tests of the choice of the converter, and of the message when there is none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import aegis.llama_cpp
import vendor_llama_cpp
from aegis import progress
from aegis.cli.console import tasks
from aegis.cli.console.reporters import JsonReporter
from aegis.errors import AegisError, EnvironmentFault, IntegrityError, UsageError
from aegis.llama_cpp import converter_digest, find_converter
from tests.screen_texts import english_in


@pytest.fixture
def checkouts(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("flag", "variable"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "convert_hf_to_gguf.py").write_bytes(b"")
    return tmp_path / "flag", tmp_path / "variable"


def test_the_flag_precedes_the_variable_and_the_variable_the_pinned_tree(
    checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, variable = checkouts
    monkeypatch.setenv("LLAMA_CPP_DIR", str(variable))
    assert find_converter(flag) == flag
    assert find_converter() == variable
    monkeypatch.setenv("LLAMA_CPP_DIR", "")
    assert find_converter() == vendor_llama_cpp.converter_tree()


def test_a_relative_directory_becomes_absolute(checkouts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkouts[0].parent)
    assert find_converter(Path("flag")) == checkouts[0]


def test_a_directory_without_a_converter_names_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="the command line"):
        find_converter(tmp_path)
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(UsageError, match="LLAMA_CPP_DIR names it"):
        find_converter()


@pytest.mark.parametrize(("content", "fault"), [(None, EnvironmentFault), (b"some other archive", IntegrityError)])
def test_a_pinned_tree_that_cannot_be_fetched_has_its_exit_code(
    content: bytes | None, fault: type[AegisError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdist = tmp_path / "llama.tar.gz"
    if content is not None:
        sdist.write_bytes(content)
    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AEGIS_LLAMA_SDIST", str(sdist))
    with pytest.raises(fault, match=r"llama\.tar\.gz") as caught:
        find_converter()
    assert "AEGIS_LLAMA_SDIST" in caught.value.fix


@pytest.mark.parametrize(("spoken", "title"), [("en", "downloading llama.cpp's converter"), ("ja", "ダウンロード中")])
def test_the_download_has_a_progress_bar(
    spoken: str, title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json, objects with how much has come and the seconds left; the steps are in the reader's language."""
    pin = vendor_llama_cpp.load_pin()

    def fetch(listener: vendor_llama_cpp.Listener) -> Path:
        listener.step("download", "in English")
        for _ in range(4):
            listener.fetched(pin.size_bytes // 4)
        listener.step("check", "in English")
        listener.step("unpack", "in English")
        return tmp_path

    monkeypatch.delenv("LLAMA_CPP_DIR", raising=False)
    monkeypatch.setenv("AEGIS_LANG", spoken)
    monkeypatch.setattr(vendor_llama_cpp, "converter_tree", fetch)
    monkeypatch.setattr(tasks, "_JSON_SECONDS", 0)
    monkeypatch.setattr(progress, "_reporter", JsonReporter())
    assert find_converter() == tmp_path
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["event"] for row in shown] == ["message", "begin", *["progress"] * 4, "end", "message", "message"]
    assert (title in shown[1]["task"], shown[1]["total"], shown[1]["unit"]) == (True, pin.size_bytes, "B")
    assert shown[2]["seconds_left"] >= 0
    assert not any("in English" in str(row) for row in shown)
    assert (english_in(shown[0]["text"] + shown[-1]["text"]) == []) == (spoken == "ja")


def test_importing_the_seam_loads_neither_torch_nor_the_bindings() -> None:
    source_root = Path(aegis.llama_cpp.__file__).parents[2]
    probe = (
        f"import sys; sys.path[:0] = {[str(source_root), str(source_root.parent)]}; import aegis.llama_cpp;"
        "print([name for name in ('torch', 'transformers', 'llama_cpp') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_a_checkout_that_changed_has_another_digest(checkouts: tuple[Path, Path]) -> None:
    """What the old converter accepted is asked again."""
    tree, copy = checkouts
    assert converter_digest(tree) == converter_digest(copy)
    (tree / "conversion").mkdir()
    (tree / "conversion" / "llama.py").write_text("names = []")
    assert converter_digest(tree) != converter_digest(copy)
