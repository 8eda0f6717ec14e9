"""The C/C++ compiler that llama.cpp is compiled with where there is no wheel of it: is there one, and how to get one.

Whether it works, CMake tries; on Windows CMake also knows best where to look.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from startup.children import WINDOWS
from startup.console import StartError
from startup.language import either


def has_compiler() -> bool:
    """Whether a C and a C++ compiler are in sight."""
    if WINDOWS:
        return True
    if sys.platform == "darwin" and not os.environ.get("CXX"):
        # /usr/bin/c++ exists on a bare macOS too: a stand-in that opens a dialogue
        return subprocess.run(["/usr/bin/xcode-select", "-p"], capture_output=True, check=False).returncode == 0
    names = {"CC": ("cc", "gcc", "clang"), "CXX": ("c++", "g++", "clang++")}
    return all(os.environ.get(variable) or any(map(shutil.which, names[variable])) for variable in names)


def check_compiler() -> None:
    """Refuse to go on without a compiler.

    Raises:
        StartError: there is none; says how to install one.
    """
    if not has_compiler():
        raise StartError(
            either(
                "No C/C++ compiler in PATH. Without a prebuilt wheel, llama.cpp is compiled on this machine.",
                "PATH に C/C++ コンパイラがありません。ビルド済み wheel がなければ、llama.cpp をこのマシンで"
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
    return (
        "  Debian, Ubuntu: sudo apt install build-essential\n"
        "  Fedora, RHEL:   sudo dnf install gcc gcc-c++\n"
        "  Arch:           sudo pacman -S base-devel\n"
        "  openSUSE:       sudo zypper install gcc gcc-c++"
    )
