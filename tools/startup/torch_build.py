"""Which build of torch: the one for this machine's card, or the small one where there is no card.

The public index has one build per platform: with CUDA on Linux, for the CPU alone on Windows. uv knows PyTorch's
own indexes by name (--torch-backend), so that no address stands here.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from startup.children import WINDOWS

_WSL = Path("/usr/lib/wsl/lib")
# what exists on one platform, or beside one build of torch, only: torch itself requires exact versions of them
_BESIDE_TORCH = re.compile(r"(nvidia-(?!ml-py)|cuda-|triton)")


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is installed on this machine."""
    if WINDOWS:
        return Path(os.environ.get("SYSTEMROOT", r"C:\Windows"), "System32", "nvcuda.dll").is_file()
    files = (Path("/proc/driver/nvidia/version"), _WSL / "libcuda.so.1")
    return shutil.which("nvidia-smi") is not None or any(file.exists() for file in files)


def search_path() -> str:
    """PATH with WSL's folder of the driver's tools, where uv asks nvidia-smi for the driver's version."""
    path = os.environ.get("PATH", "")
    return os.pathsep.join((path, str(_WSL))) if _WSL.is_dir() else path


def backend() -> str | None:
    """The value for uv's --torch-backend, or None to take what the user's own indexes and folders have."""
    if sys.platform == "darwin" or from_own_places():
        return None
    if has_nvidia_driver():
        return "auto"
    return None if WINDOWS else "cpu"  # the public index has the CPU build for Windows


def from_own_places() -> bool:
    """Whether torch may be another build than the public index (or a mirror of it) has, and its hash with it."""
    return any(map(os.environ.get, ("UV_TORCH_BACKEND", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")))


def is_cpu_build(site_packages: Path) -> bool:
    """Whether the torch that is installed, if any, was built without CUDA."""
    version = site_packages / "torch" / "version.py"
    return version.is_file() and re.search(r"^cuda\b.*=\s*None", version.read_text("utf-8"), re.MULTILINE) is not None


def without_build(constraints: str) -> str:
    """The constraints for another build of torch: its version without the hashes, nothing of what comes with it."""
    kept = [block for block in blocks(constraints) if not _BESIDE_TORCH.match(block)]
    return "".join(block.split(" \\\n")[0] + "\n" if block.startswith("torch==") else block for block in kept)


def blocks(constraints: str) -> list[str]:
    """One text per package, its hashes with it; comments apart."""
    text = "".join(line for line in constraints.splitlines(keepends=True) if line.strip() and not line.startswith("#"))
    return re.findall(r"^\S.*\n(?:[ \t].*\n)*", text, re.MULTILINE)
