"""Refuse cheaply what would fail late: Python, processor, folder and disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from startup.children import WINDOWS
from startup.console import StartError
from startup.language import either

# packages, their archives and the compilation; torch alone makes the difference
NEEDED_BYTES, NEEDED_BYTES_CUDA = 4 * 1000**3, 12 * 1000**3
WINDOWS_LONGEST_ROOT = 100  # torch's own paths take about 150 of the 260 characters


def check_machine(root: Path, *, needs_space: bool, cuda: bool = False) -> None:
    """Check Python, processor and system, folder, and disk.

    Raises:
        StartError: the first thing that is missing, with what to install.
    """
    _check_python()
    _check_platform()
    _check_folder(root)
    if needs_space:
        _check_disk(root, NEEDED_BYTES_CUDA if cuda else NEEDED_BYTES)


def _check_python() -> None:
    if sys.implementation.name != "cpython":
        name = platform.python_implementation()
        raise StartError(
            either(
                f"This is {name}; PyTorch is built for CPython only.", f"{name} です。PyTorch は CPython 専用です。"
            ),
            either(
                "Start this file with CPython 3.11 or newer (https://www.python.org/downloads/).",
                "CPython 3.11 以降（https://www.python.org/downloads/）で起動してください。",
            ),
        )
    if sys.maxsize < 2**32:
        raise StartError(
            either(
                "This is a 32-bit Python; PyTorch is built for 64-bit only.",
                "32-bit 版の Python です。PyTorch は 64-bit 専用です。",
            ),
            either(
                "Install the 64-bit Python from https://www.python.org/downloads/ and start this file with it.",
                "https://www.python.org/downloads/ から 64-bit 版の Python を入れ、それで起動してください。",
            ),
        )


def _check_platform() -> None:
    machine = platform.machine().lower()
    if machine not in {"x86_64", "amd64", "arm64", "aarch64"}:
        raise StartError(
            either(
                f"There are no PyTorch packages for this processor ({machine}).",
                f"この CPU（{machine}）向けの PyTorch はありません。",
            ),
            either(
                "Use a machine with an x86-64 or 64-bit ARM processor.",
                "x86-64 または 64-bit ARM のマシンを使ってください。",
            ),
        )
    if sys.platform == "darwin" and machine == "x86_64":
        raise StartError(
            either(
                "PyTorch is no longer built for Intel Macs, and this is an Intel Python.",
                "PyTorch は Intel Mac 向けの提供を終えており、これは Intel 版の Python です。",
            ),
            either(
                "On Apple silicon install the arm64 Python (this one runs under Rosetta).",
                "Apple シリコンでは arm64 版の Python を入れてください（今の Python は Rosetta で動いています）。",
            ),
        )
    if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or ""):
        raise StartError(
            either(
                "This Linux uses musl (Alpine); PyTorch is built for glibc only.",
                "musl の Linux（Alpine）です。PyTorch は glibc 専用です。",
            ),
            either(
                "Use a glibc distribution, for example a Debian or Ubuntu container.",
                "glibc のディストリビューション（Debian や Ubuntu のコンテナなど）を使ってください。",
            ),
        )


def _check_folder(root: Path) -> None:
    if os.pathsep in str(root):
        raise StartError(
            either(
                f"The folder's path has a '{os.pathsep}' in it, which no virtual environment can have: {root}",
                f"フォルダのパスに '{os.pathsep}' があり、仮想環境を作れません: {root}",
            ),
            either("Move the clone to a path without it.", "その文字のないパスへ移してください。"),
        )
    if not os.access(root, os.W_OK):
        raise StartError(
            either(f"The folder cannot be written to: {root}", f"フォルダに書き込めません: {root}"),
            either("Clone into a folder of your own.", "自分のフォルダに clone してください。"),
        )
    if WINDOWS and len(str(root)) > WINDOWS_LONGEST_ROOT and not _long_paths_enabled():
        raise StartError(
            either(
                f"The folder's path is too long for Windows ({len(str(root))} characters): {root}",
                f"フォルダのパスが Windows には長すぎます（{len(str(root))} 文字）: {root}",
            ),
            either(
                "Move the clone to a short path such as C:\\aegis, or turn on long paths (LongPathsEnabled).",
                "C:\\aegis のような短いパスへ移すか、長いパスを有効にしてください（LongPathsEnabled）。",
            ),
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


def _check_disk(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.0f} GB"
        raise StartError(
            either(
                f"Too little disk space: {have} free, about {want} needed at {root}",
                f"ディスクの空きが足りません: 空き {have}、必要 約 {want}（{root}）",
            ),
            either("Free some space, or clone to another disk.", "空きを作るか、別のディスクに clone してください。"),
        )
