"""uv: the one on PATH, or a wheel of it that pip fetches, checked by its hash, into the set-up's own folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from startup.children import WINDOWS, child_environment
from startup.console import StartError
from startup.language import either

PINNED = Path(__file__).with_name("uv.txt")
MIN_VERSION = (0, 9)  # of those on PATH: --torch-backend=auto, --config-settings-package, hashes in constraints


def works(uv: Path) -> bool:
    """Whether `uv` starts and is new enough."""
    found = re.match(r"uv (\d+)\.(\d+)", _answer(uv, "--version") or "")
    return found is not None and (int(found[1]), int(found[2])) >= MIN_VERSION


def find_or_fetch(own: Path, run: Callable[[Sequence[str | Path]], None]) -> Path:
    """uv's program, fetched if there is none.

    Args:
        own: the set-up's folder. The program gets there by one rename, so that an interruption leaves none.
        run: runs a command, and raises if it fails.

    Raises:
        StartError: this Python has no way to fetch it.
    """
    on_path = shutil.which("uv")
    found = Path(on_path) if on_path and works(Path(on_path)) else kept(own)
    if found is not None:
        return found
    part, place = own / "uv.part", own / "uv"
    for folder in (part, place):
        shutil.rmtree(folder, ignore_errors=True)
    python = _python_with_pip(own / "pip")
    # fmt: off
    run([
        python, "-m", "pip", "install", "--no-input", "--no-deps", "--only-binary", ":all:",
        "--require-hashes", "-r", PINNED, "--target", part,
    ])
    # fmt: on
    part.rename(place)
    shutil.rmtree(own / "pip", ignore_errors=True)
    found = next(place.glob("*/uv.exe" if WINDOWS else "bin/uv"))
    run([found, "--version"])
    return found


def kept(own: Path) -> Path | None:
    """The uv that an earlier start fetched."""
    found = next(own.glob("uv/*/uv.exe" if WINDOWS else "uv/bin/uv"), None)
    return found if found and works(found) else None


def _python_with_pip(folder: Path) -> Path:
    """This Python if it has pip, else one in an environment of its own that has."""
    if _answer(sys.executable, "-m", "pip", "--version"):
        return Path(sys.executable)
    base = getattr(sys, "_base_executable", None) or sys.executable
    if _answer(base, "-m", "venv", "--clear", folder) is None:
        raise StartError(
            either(
                "There is no uv on PATH, and this Python has neither pip nor venv to fetch it with (Debian and\n"
                "Ubuntu ship them apart).",
                "PATH に uv がなく、この Python には uv を取得するための pip も venv もありません\n"
                "（Debian と Ubuntu では別のパッケージです）。",
            ),
            "sudo apt install python3-venv",
        )
    return folder / ("Scripts/python.exe" if WINDOWS else "bin/python")


def _answer(*argv: str | Path) -> str | None:
    """What the program prints; None if it does not start or fails."""
    try:
        done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, env=child_environment())
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None
