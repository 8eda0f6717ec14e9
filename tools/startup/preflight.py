"""Refuse cheaply what would fail late: everything looked at here costs well under a second or two."""

from __future__ import annotations

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from startup.console import StartError

WINDOWS = os.name == "nt"
NEEDED_BYTES = 4 * 1000**3  # packages 2 GB with the CPU build of torch, their archives, and the compilation
WINDOWS_LONGEST_ROOT = 100  # torch's own paths take about 150 of the 260 characters

_PROGRAM = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>().size()); }\n"


def check_machine(root: Path, *, needs_space: bool) -> str:
    """Check Python, processor, folder, disk and compiler; return the compiler's name.

    Raises:
        StartError: the first thing that is missing, with what to install.
    """
    _check_python()
    _check_folder(root)
    if needs_space:
        _check_disk(root)
    return _check_compiler()


def _check_python() -> None:
    if sys.implementation.name != "cpython":
        raise StartError(
            f"This is {platform.python_implementation()}; PyTorch is built for CPython only.",
            "Start this file with CPython 3.11 or newer (https://www.python.org/downloads/).",
        )
    if sys.maxsize < 2**32:
        raise StartError(
            "This is a 32-bit Python; PyTorch is built for 64-bit only.",
            "Install the 64-bit Python from https://www.python.org/downloads/ and start this file with it.",
        )
    machine = platform.machine().lower()
    if machine not in {"x86_64", "amd64", "arm64", "aarch64"}:
        raise StartError(
            f"There are no PyTorch packages for this processor ({machine}).",
            "Use a machine with an x86-64 or 64-bit ARM processor.",
        )
    if sys.platform == "darwin" and machine == "x86_64":
        raise StartError(
            "PyTorch is no longer built for Intel Macs, and this is an Intel Python.",
            "On Apple silicon install the arm64 Python (this one runs under Rosetta).",
        )
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        raise StartError(
            "This Linux uses musl (Alpine); PyTorch is built for glibc only.",
            "Use a glibc distribution, for example a Debian or Ubuntu container.",
        )
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise StartError(
            "This Python has no venv module with pip (Debian and Ubuntu ship it apart).",
            f"sudo apt install python3-venv      (or python{version}-venv, for this Python)",
        )


def _check_folder(root: Path) -> None:
    if os.pathsep in str(root):
        raise StartError(
            f"The folder's path has a '{os.pathsep}' in it, which no virtual environment can have: {root}",
            "Move the clone to a path without it.",
        )
    if not os.access(root, os.W_OK):
        raise StartError(f"The folder cannot be written to: {root}", "Clone into a folder of your own.")
    if WINDOWS and len(str(root)) > WINDOWS_LONGEST_ROOT and not _long_paths_enabled():
        raise StartError(
            f"The folder's path is too long for Windows ({len(str(root))} characters): {root}",
            "Move the clone to a short path such as C:\\aegis, or turn on long paths (LongPathsEnabled).",
        )


def _long_paths_enabled() -> bool:
    if sys.platform != "win32":
        return True
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    except OSError:
        return False


def _check_disk(root: Path) -> None:
    free = shutil.disk_usage(root).free
    if free < NEEDED_BYTES:
        raise StartError(
            f"Too little disk space: {free / 1e9:.1f} GB free, about {NEEDED_BYTES / 1e9:.0f} GB needed at {root}",
            "Free some space, or clone to another disk.",
        )


def _check_compiler() -> str:
    if WINDOWS:
        return _check_windows_compiler()
    if sys.platform == "darwin":
        # /usr/bin/c++ exists on a bare macOS too: a stand-in that opens a dialogue
        tools = subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False)
        if tools.returncode != 0 and not os.environ.get("CXX"):
            raise _no_compiler("xcode-select is not set up")
    c = _find_tool("CC", ("cc", "gcc", "clang"))
    cxx = _find_tool("CXX", ("c++", "g++", "clang++"))
    if c is None or cxx is None:
        missing = "C" if c is None else "C++"
        raise _no_compiler(f"no {missing} compiler in PATH")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(_PROGRAM, encoding="utf-8")
        built = subprocess.run(
            [*cxx, str(source), "-o", str(Path(folder, "probe"))],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    if built.returncode != 0:
        first = (built.stderr.strip().splitlines() or [f"exit code {built.returncode}"])[0]
        raise _no_compiler(f"{cxx[0]} cannot build a small program: {first}")
    return Path(cxx[0]).name


def _find_tool(variable: str, names: tuple[str, ...]) -> list[str] | None:
    """The compiler as argv, from the environment variable (which may carry options or a launcher) or PATH."""
    if os.environ.get(variable):
        argv = shlex.split(os.environ[variable])
        return argv if shutil.which(argv[0]) else None
    found = next((path for name in names if (path := shutil.which(name))), None)
    return [found] if found else None


def _check_windows_compiler() -> str:
    programs = Path(os.environ.get("PROGRAMFILES(X86)", r"C:\Program Files (x86)"))
    vswhere = programs / "Microsoft Visual Studio" / "Installer" / "vswhere.exe"
    if vswhere.is_file():
        query = [str(vswhere), "-latest", "-products", "*", "-property", "installationPath", "-requires"]
        part = "ARM64" if platform.machine().lower() == "arm64" else "x86.x64"
        found = subprocess.run(
            [*query, f"Microsoft.VisualStudio.Component.VC.Tools.{part}"], capture_output=True, check=False
        )
        if found.stdout.strip():
            return "Visual Studio"
    for name in ("cl", "clang-cl", "g++"):
        if shutil.which(name):
            return name
    raise _no_compiler("no Visual Studio C++ tools, and no cl, clang-cl or g++ in PATH")


def _no_compiler(why: str) -> StartError:
    return StartError(
        f"No working C/C++ compiler: {why}. llama-cpp-python is compiled on this machine.",
        "Install one and start again (CMake is not needed: pip fetches its own):\n" + compiler_packages(),
    )


def compiler_packages() -> str:
    """The command that installs a C/C++ compiler on this operating system."""
    if WINDOWS:
        return (
            "  winget install Microsoft.VisualStudio.2022.BuildTools --override "
            '"--wait --passive --add Microsoft.VisualStudio.Workload.VCTools --includeRecommended"'
        )
    if sys.platform == "darwin":
        return "  xcode-select --install"
    commands = {
        "debian": "sudo apt install build-essential",
        "fedora": "sudo dnf install gcc gcc-c++",
        "arch": "sudo pacman -S base-devel",
        "suse": "sudo zypper install gcc gcc-c++",
    }
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    family = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".replace("ubuntu", "debian").replace(
        "rhel", "fedora"
    )
    chosen = [command for name, command in commands.items() if name in family]
    return "\n".join(f"  {command}" for command in chosen or commands.values())
