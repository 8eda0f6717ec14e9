"""The C/C++ compiler that llama.cpp is compiled with where there is no wheel of it: tried, and how to get one."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from startup.children import WINDOWS
from startup.console import StartError
from startup.language import either

_PROGRAM = "#include <vector>\nint main() { return static_cast<int>(std::vector<int>().size()); }\n"


def check_compiler() -> str:
    """Find a compiler that builds a small program; return its name.

    Raises:
        StartError: there is none; says how to install one.
    """
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


def has_compiler() -> bool:
    """Whether `check_compiler` finds one."""
    try:
        check_compiler()
    except StartError:
        return False
    return True


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
        either(
            f"No working C/C++ compiler: {why}. Without a prebuilt wheel, llama.cpp is compiled on this machine.",
            f"使える C/C++ コンパイラがありません: {why}。ビルド済み wheel がなければ、llama.cpp をこのマシンで"
            "コンパイルします。",
        ),
        either(
            "Install one and start again (CMake is not needed, it is fetched):\n",
            "インストールして、もう一度始めてください（CMake は自動で取得します）:\n",
        )
        + compiler_packages(),
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
