"""Tests of the compiled imatrix: compiled once per version of the libraries, completely or not at all."""

from __future__ import annotations

import shutil
import stat
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

import vendor_llama_cpp
from aegis.errors import AegisError, EnvironmentFault, ToolError
from aegis.llama_cpp import common_library, imatrix_build
from aegis.llama_cpp.imatrix_build import imatrix_tool, refuse_without_compiler
from aegis.runs import disk
from tests.conftest import Recorder
from tests.processes import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="imatrix is not compiled there")

Compiler = Callable[[str], Path]


@pytest.fixture(scope="module")
def compiled() -> Path:
    """Return the tool, compiled by the real compiler in the user's cache."""
    return imatrix_tool()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache with the pinned source and no compiled tool."""
    tree = vendor_llama_cpp.converter_tree()
    shutil.copytree(tree, tmp_path / "cache" / "llama.cpp" / tree.name)
    monkeypatch.setenv("AEGIS_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "llama.cpp-tools"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """A stand-in for CXX: a shell script that gets the tool's path in $out."""

    def make(script: str) -> Path:
        path = tmp_path / "c++ of mine"
        find = 'while [ "$1" != -o ]; do shift; done\nout="$2"\n'
        path.write_text(f"#!/bin/sh\n{find}{script}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", f'"{path}" -DOPTION')
        return path

    return make


def refused(error: type[AegisError]) -> AegisError:
    with pytest.raises(error) as caught:
        imatrix_tool()
    return caught.value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"build.lock"}


def test_the_tool_is_compiled_once_and_kept(compiled: Path, compiler: Compiler) -> None:
    """The second time no compiler is asked, here one that would fail."""
    before = compiled.stat().st_mtime_ns
    compiler("exit 1")
    assert imatrix_tool() == compiled
    assert compiled.stat().st_mtime_ns == before
    assert compiled.parent == disk.cache_directory() / "llama.cpp-tools"


def test_a_missing_compiler_is_an_error_with_the_command_that_installs_one(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(home))
    error = refused(EnvironmentFault)
    assert error.exit_code == 3
    assert "C++ compiler" in error.what
    assert "install" in error.fix
    assert "--variants plain" in error.fix
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    assert "no-such-compiler" in refused(EnvironmentFault).what
    assert not home.exists()


def test_a_failed_build_names_its_log_and_leaves_no_tool(home: Path, compiler: Compiler) -> None:
    compiler("echo 'imatrix.cpp:1: error: no such thing'; echo torn > \"$out\"; exit 1")
    error = refused(ToolError)
    assert error.exit_code == 7
    assert "error: no such thing" in error.why
    (log,) = home.glob("*.log")
    assert str(log) in error.fix
    assert "imatrix.cpp" in log.read_text(encoding="utf-8").splitlines()[0]
    assert names(home) == {log.name}


def test_a_tool_that_does_not_start_is_not_kept(home: Path, compiler: Compiler) -> None:
    """The compiler's success is not enough. The control is the next test, whose tool starts."""
    compiler('echo "no library" > "$out"')
    assert "does not start" in refused(ToolError).what
    assert {path.suffix for path in home.iterdir()} == {".log", ".lock"}


def test_concurrent_processes_compile_the_tool_once(
    compiled: Path, home: Path, compiler: Compiler, reporter: Recorder, tmp_path: Path
) -> None:
    """The stand-in compiler goes on when all others wait for it, and say so."""
    go_on = tmp_path / "go on"
    compiler(f'echo >> "{home}/count"; while [ ! -e "{go_on}" ]; do sleep 0.05; done; cp "{compiled}" "$out"')
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(imatrix_tool())) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: sum("waiting" in line for line in reporter.messages) == 3, limit_s=60)
    finally:
        go_on.touch()
        for thread in threads:
            thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert (home / "count").read_text(encoding="utf-8") == "\n"
    assert names(home) == {found[0].name, "count"}


def test_the_leftovers_of_a_killed_build_are_removed(compiled: Path, home: Path, compiler: Compiler) -> None:
    (home / ".building-dead").mkdir(parents=True)
    (home / ".building-dead" / "half").touch()
    compiler(f'cp "{compiled}" "$out"')
    tool = imatrix_tool()
    assert names(home) == {tool.name}


def test_other_libraries_get_another_tool(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tool is never run on libraries it was not linked against."""
    monkeypatch.setattr(common_library.Libraries, "hashes", {"llama": "other"})
    monkeypatch.setattr(imatrix_build, "_build", lambda tool, *_: None)
    assert imatrix_tool() != compiled


def test_libraries_of_another_version_are_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = replace(vendor_llama_cpp.load_pin(), version="9.9.9")
    monkeypatch.setattr(vendor_llama_cpp, "load_pin", lambda: pin)
    error = refused(EnvironmentFault)
    assert "9.9.9" in error.what
    assert "llama-cpp-python==9.9.9" in error.fix


def test_a_binding_without_the_common_library_has_it_compiled_into_the_cache(
    compiled: Path, home: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, reporter: Recorder
) -> None:
    """pip compiles it from the pinned release; a stand-in for its build copies the files."""
    whole = common_library.find_libraries()
    assert whole is not None
    installed = metadata.distribution("llama-cpp-python")
    lean = home.parent / "lean" / "llama_cpp_python.dist-info"
    lean.mkdir(parents=True)
    (lean / "METADATA").write_text(f"Name: llama-cpp-python\nVersion: {installed.version}\n", encoding="utf-8")
    (lean / "RECORD").write_text("llama_cpp/__init__.py,,\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(lean.parent))
    ran: list[list[str]] = []

    def logged(command: list[str], *_: object, **__: object) -> None:
        ran.append(command)
        _install_again(installed, whole, Path(command[-1]))

    assert common_library.find_libraries() is None
    refuse_without_compiler()  # a compiler is all that is missing
    monkeypatch.setattr(imatrix_build, "_logged", logged)
    libraries = common_library.compile_libraries(imatrix_build._run_pip)
    assert "--require-hashes" in ran[0]
    assert libraries.libraries.is_relative_to(home)
    assert common_library.find_libraries() == libraries
    assert libraries.hashes == whole.hashes
    assert any("libraries" in line for line in reporter.messages)


def _install_again(installed: metadata.Distribution, whole: common_library.Libraries, target: Path) -> None:
    """Write the libraries and metadata as `pip install --target` does."""
    shutil.copytree(whole.libraries, target / "lib", symlinks=True, dirs_exist_ok=True)
    shutil.copytree(whole.headers, target / "include", dirs_exist_ok=True)
    info = next(Path(str(file.locate())).parent for file in installed.files or () if file.name == "METADATA")
    shutil.copytree(info, target / info.name)


@pytest.mark.parametrize("left", ["part", "place"])
def test_an_unfinished_compilation_is_not_used(home: Path, left: str) -> None:
    """Nothing is taken that has not got its name by the rename."""
    place = common_library._place()
    half = place if left == "place" else place.with_name(place.name + ".part")
    (half / "lib").mkdir(parents=True)
    (half / "lib" / f"libllama-common{common_library.SUFFIX}").touch()
    seen: list[bool] = []

    class EndedError(Exception):
        pass

    def run(command: list[str], environment: dict[str, str]) -> None:
        seen.append((Path(command[-1]) / "lib").exists())
        raise EndedError

    with pytest.raises(EndedError):
        common_library.compile_libraries(run)
    assert seen == [False]
