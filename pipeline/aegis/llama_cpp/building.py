"""llama.cpp's own imatrix tool, compiled on first use and kept in the cache.

The wheel of llama-cpp-python installs llama.cpp's libraries with their headers, llama-common among them, which holds
all that the tool is made of but its one source file. That file comes from the pinned tree, of the same commit.

It is linked as a library whose `main` a Python process calls: so the tool runs, as the converter and the quantizer do,
in a process that cannot outlive this one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import filelock

import vendor_llama_cpp
from aegis import progress
from aegis.errors import EnvironmentFault, ToolError
from aegis.llama_cpp.tree import pinned_tree
from aegis.messages import phrase
from aegis.runs import disk
from aegis.runs.manifest import digest, file_sha256

WORKER = Path(__file__).with_name("_imatrix_worker.py")
_BINDING = "llama-cpp-python"
_LIBRARIES = ("llama-common", "llama", "ggml", "ggml-base")
_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
_SECONDS = 900
_SHOWN_LINES = 15
_BUILDING = ".building-"


@dataclass(frozen=True)
class _Installed:
    """Where the binding put llama.cpp's libraries and headers."""

    libraries: Path
    headers: Path

    @classmethod
    def find(cls) -> _Installed:
        version = vendor_llama_cpp.load_pin().version
        again = f'"{sys.executable}" -m pip install --force-reinstall --no-deps --no-binary {_BINDING} '
        cure = f"{again}{_BINDING}=={version}"
        try:
            distribution = metadata.distribution(_BINDING)
        except metadata.PackageNotFoundError:
            raise EnvironmentFault("building.no_binding", binding=_BINDING, cure=cure) from None
        if distribution.version != version:
            raise EnvironmentFault(
                "building.other_version",
                binding=_BINDING,
                version=distribution.version,
                version_2=version,
                cure=cure,
            )
        places = {file.name: Path(str(file.locate())).parent for file in distribution.files or ()}
        libraries, headers = places.get(f"libllama-common{_SUFFIX}"), places.get("llama.h")
        if libraries is None or headers is None:
            raise EnvironmentFault("building.no_headers", binding=_BINDING, cure=cure)
        return cls(libraries, headers)

    @property
    def hashes(self) -> dict[str, str]:
        return {name: file_sha256(self.libraries / f"lib{name}{_SUFFIX}") for name in _LIBRARIES}


def refuse_without_compiler() -> None:
    """Find out, without writing anything, whether `imatrix_tool` has what it needs.

    Raises:
        EnvironmentFault: no compiler, no libraries to link against, Windows.
    """
    if not _place(_installed()).is_file():
        _compiler()


def imatrix_tool() -> Path:
    """The compiled tool, for `WORKER` to load; compiled now if the cache does not hold one for these libraries.

    Raises:
        EnvironmentFault: no compiler, no libraries to link against, Windows, no source to be had.
        ToolError: it did not compile, or does not start; names the log.
    """
    installed = _installed()
    tool = _place(installed)
    if tool.is_file():
        return tool
    disk.cache_directory()
    tool.parent.mkdir(exist_ok=True)
    lock = filelock.FileLock(tool.parent / "build.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.say(phrase("building.waiting"))
        lock.acquire()
    try:
        if not tool.is_file():
            _build(tool, installed, pinned_tree())
    finally:
        lock.release()
    return tool


def _installed() -> _Installed:
    if sys.platform == "win32":
        raise EnvironmentFault("building.windows")
    return _Installed.find()


def _place(installed: _Installed) -> Path:
    """Where the tool for these libraries is kept."""
    # the folder too: it is written into the tool as the place to load the libraries from
    made_of = {"tree": vendor_llama_cpp.load_pin().tree_sha256, "folder": str(installed.libraries), **installed.hashes}
    return disk.cache_place().absolute() / "llama.cpp-tools" / f"imatrix-{digest(made_of)[:24]}{_SUFFIX}"


def _build(tool: Path, installed: _Installed, tree: Path) -> None:
    """Compile beside `tool`, see that it starts, and rename. The lock is held: what lies here half made is nobody's."""
    for leftover in tool.parent.glob(f"{_BUILDING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    compiler = _compiler()
    log = tool.with_suffix(".log")
    progress.say(phrase("building.compiling", name=Path(compiler[0]).name))
    with TemporaryDirectory(prefix=_BUILDING, dir=tool.parent) as folder:
        part = Path(folder, tool.name)
        _logged(_command(compiler, part, installed, tree), log, phrase("building.did_not_compile"))
        _logged(
            [sys.executable, "-P", "-B", str(WORKER), str(part), "--version"], log, phrase("building.does_not_start")
        )
        part.replace(tool)
    log.unlink(missing_ok=True)


def _command(compiler: list[str], out: Path, installed: _Installed, tree: Path) -> list[str]:
    folder = str(installed.libraries)
    # DT_RPATH and not its successor, which would not hold for the libraries that these libraries need
    old_rpath = [] if sys.platform == "darwin" else ["-Xlinker", "--disable-new-dtags", "-Xlinker", "--no-undefined"]
    # fmt: off
    return [
        *compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread",
        f"-I{tree / 'common'}", f"-I{installed.headers}", str(tree / "tools" / "imatrix" / "imatrix.cpp"),
        "-o", str(out), f"-L{folder}", "-Xlinker", "-rpath", "-Xlinker", folder, *old_rpath,
        *(f"-l{name}" for name in _LIBRARIES),
    ]
    # fmt: on


def _logged(command: list[str], log: Path, what: str) -> None:
    try:
        with log.open("wb") as output:
            output.write((shlex.join(command) + "\n").encode())
            output.flush()
            code: int | None = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=_SECONDS,
            ).returncode
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        errors = [line for line in lines if "error" in line] or lines
        if code is None:
            ended = phrase("building.overdue", seconds=_SECONDS)
        else:
            ended = phrase("building.exit_code", code=code)
        raise ToolError(
            "building.failed",
            what=what,
            errors="\n".join([ended, *errors[:_SHOWN_LINES]]),
            log=log,
        )


def _compiler() -> list[str]:
    """The C++ compiler as the start of a command: CXX, which may carry options, or the first one in PATH."""
    given = shlex.split(os.environ.get("CXX", ""))
    for candidate in [given] if given else [["c++"], ["g++"], ["clang++"]]:
        if path := shutil.which(candidate[0]):
            return [path, *candidate[1:]]
    cures = (
        "xcode-select --install"
        if sys.platform == "darwin"
        else "sudo apt install g++    (or: sudo dnf install gcc-c++)"
    )
    raise EnvironmentFault(
        "building.no_such_compiler" if given else "building.no_compiler",
        **({"compiler": given[0]} if given else {}),
        cures=cures,
    )
