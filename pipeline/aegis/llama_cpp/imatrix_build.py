"""Compiles llama.cpp's imatrix tool on first use, and keeps it in the cache.

The tool is one source file from the pinned tree and the library llama-common of the same commit. `common_library` finds
this library or compiles it, which takes several minutes; the tool itself takes one.

The tool is linked as a library, and a Python process calls its `main`. So it runs, like the converter and the
quantizer, in a process that cannot outlive this one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import filelock

from aegis import progress
from aegis.errors import EnvironmentFault, ToolError
from aegis.llama_cpp.common_library import LIBRARIES, SUFFIX, TOOLS, Libraries, compile_libraries, find_libraries
from aegis.llama_cpp.converter_tree import pinned_converter
from aegis.messages import phrase
from aegis.runs import disk
from aegis.runs.manifest import digest
from aegis.vendored import vendor_llama_cpp

WORKER = Path(__file__).with_name("_imatrix_worker.py")
_SECONDS, _SECONDS_OF_LIBRARIES = 900, 2 * 3600
_SHOWN_LINES = 15
_BUILDING = ".building-"


def refuse_without_compiler() -> None:
    """Check, without writing anything, that `imatrix_tool` has what it needs.

    Raises:
        EnvironmentFault: there is no compiler or no binding, or this is Windows.
    """
    if _kept() is None:
        _compiler()


def imatrix_tool() -> Path:
    """Return the path of the compiled tool for `WORKER`; compile it if the cache has none for these libraries.

    Raises:
        EnvironmentFault: there is no compiler, binding or source, or this is Windows.
        ToolError: it did not compile, or does not start; the message names the log.
    """
    if (tool := _kept()) is not None:
        return tool
    _compiler()
    folder = disk.cache_directory() / TOOLS
    folder.mkdir(exist_ok=True)
    lock = filelock.FileLock(folder / "build.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        progress.say(phrase("building.waiting"))
        lock.acquire()
    try:
        libraries = find_libraries() or compile_libraries(_run_pip)
        tool = _place(libraries)
        if not tool.is_file():
            _build(tool, libraries, pinned_converter())
    finally:
        lock.release()
    return tool


def _kept() -> Path | None:
    """Return the compiled tool for the existing libraries; None if there is none."""
    libraries = find_libraries()
    tool = None if libraries is None else _place(libraries)
    return tool if tool is not None and tool.is_file() else None


def _place(libraries: Libraries) -> Path:
    """Return the path of the tool for these libraries."""
    # the folder counts too: the tool loads the libraries from this path, which is linked into it
    made_of = {
        "tree": vendor_llama_cpp.load_pin().tree_sha256,
        "folder": str(libraries.libraries),
        **libraries.hashes,
    }
    return disk.cache_place().absolute() / TOOLS / f"imatrix-{digest(made_of)[:24]}{SUFFIX}"


def _run_pip(command: list[str], environment: dict[str, str]) -> None:
    """Run pip to compile the libraries; its log is written beside them."""
    progress.say(phrase("building.compiling_libraries"))
    log = disk.cache_place().absolute() / TOOLS / "libraries.log"
    what = phrase("building.did_not_compile")
    _logged(command, log, what, environment={**os.environ, **environment}, seconds=_SECONDS_OF_LIBRARIES)
    log.unlink(missing_ok=True)


def _build(tool: Path, libraries: Libraries, tree: Path) -> None:
    """Compile beside `tool`, check that it starts, and rename it.

    This process holds the lock, so incomplete folders here belong to no live process.
    """
    for leftover in tool.parent.glob(f"{_BUILDING}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    compiler = _compiler()
    log = tool.with_suffix(".log")
    progress.say(phrase("building.compiling", name=Path(compiler[0]).name))
    with TemporaryDirectory(prefix=_BUILDING, dir=tool.parent) as folder:
        part = Path(folder, tool.name)
        _logged(_command(compiler, part, libraries, tree), log, phrase("building.did_not_compile"))
        _logged(
            [sys.executable, "-P", "-B", str(WORKER), str(part), "--version"], log, phrase("building.does_not_start")
        )
        part.replace(tool)
    log.unlink(missing_ok=True)


def _command(compiler: list[str], out: Path, libraries: Libraries, tree: Path) -> list[str]:
    folder = str(libraries.libraries)
    # DT_RPATH and not DT_RUNPATH, which would not apply to the libraries that these libraries need
    old_rpath = [] if sys.platform == "darwin" else ["-Xlinker", "--disable-new-dtags", "-Xlinker", "--no-undefined"]
    # fmt: off
    return [
        *compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-pthread",
        f"-I{tree / 'common'}", f"-I{libraries.headers}", str(tree / "tools" / "imatrix" / "imatrix.cpp"),
        "-o", str(out), f"-L{folder}", "-Xlinker", "-rpath", "-Xlinker", folder, *old_rpath,
        *(f"-l{name}" for name in LIBRARIES),
    ]
    # fmt: on


def _logged(
    command: list[str],
    log: Path,
    what: str,
    *,
    environment: dict[str, str] | None = None,
    seconds: int = _SECONDS,
) -> None:
    try:
        with log.open("wb") as output:
            output.write((shlex.join(command) + "\n").encode())
            output.flush()
            code: int | None = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                check=False,
                timeout=seconds,
            ).returncode
    except subprocess.TimeoutExpired:
        code = None
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        errors = [line for line in lines if "error" in line] or lines
        if code is None:
            ended = phrase("building.overdue", seconds=seconds)
        else:
            ended = phrase("building.exit_code", code=code)
        raise ToolError(
            "building.failed",
            what=what,
            errors="\n".join([ended, *errors[:_SHOWN_LINES]]),
            log=log,
        )


def _compiler() -> list[str]:
    """Return the C++ compiler as the start of a command: CXX, which may have options, or the first one in PATH."""
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
