"""Refuse cheaply what would fail late: a machine that PyTorch has no packages for, and a full disk."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
from pathlib import Path

from startup.console import StartError
from startup.language import either
from startup.torch_build import has_nvidia_driver

# packages, their archives and the compilation; torch alone makes the difference
NEEDED_BYTES, NEEDED_BYTES_CUDA = 4 * 1000**3, 12 * 1000**3


def check_machine(root: Path, *, needs_space: bool) -> None:
    """Check Python and system, and the disk.

    Raises:
        StartError: what is missing, with what to install.
    """
    machine = platform.machine().lower()
    musl = "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "")
    if (
        sys.implementation.name != "cpython"
        or sys.maxsize < 2**32
        or machine not in {"x86_64", "amd64", "arm64", "aarch64"}
        or (sys.platform == "darwin" and machine == "x86_64")
        or musl
    ):
        bits = 64 if sys.maxsize > 2**32 else 32
        found = f"{platform.python_implementation()}, {bits}-bit, {platform.system()} {machine}{' musl' * musl}"
        raise StartError(
            either(
                f"PyTorch has no packages for this Python ({found}).",
                f"この Python（{found}）向けの PyTorch はありません。",
            ),
            either(
                "Start this file with a 64-bit CPython (https://www.python.org/downloads/) on Linux with glibc (not\n"
                "Alpine), on Windows, or on Apple silicon (there the arm64 one, without Rosetta).",
                "64-bit 版の CPython（https://www.python.org/downloads/）で起動してください。OS は glibc の Linux\n"
                "（Alpine 以外）、Windows、Apple シリコンの Mac（Rosetta なしの arm64 版）のいずれかです。",
            ),
        )
    free, needed = shutil.disk_usage(root).free, NEEDED_BYTES_CUDA if has_nvidia_driver() else NEEDED_BYTES
    if needs_space and free < needed:
        have, want = f"{free / 1e9:.1f} GB", f"{needed / 1e9:.0f} GB"
        raise StartError(
            either(
                f"Too little disk space: {have} free, about {want} needed at {root}",
                f"ディスクの空きが足りません: 空き {have}、必要 約 {want}（{root}）",
            ),
            either("Free some space, or clone to another disk.", "空きを作るか、別のディスクに clone してください。"),
        )
