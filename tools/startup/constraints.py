"""Refreshing tools/constraints.txt: the exact versions that both commands of the README install."""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from startup import advice
from startup.children import child_environment, run_logged
from startup.console import StartError, Step, say
from startup.environment import WINDOWS, write_atomically

HEADER = """\
# The exact versions that `tools/start.py` installs, as constraints: a line binds a package that is
# needed anyway, and installs nothing by itself. Made by `python tools/start.py lock`; do not edit by hand.
#
# Resolved on {system} with Python {python}, the oldest that is supported, for the project with its dev extra.
# Packages that exist on some platforms only have no line: with the CUDA build of torch on Linux, torch
# itself requires its nvidia-*, cuda-* and triton packages in exact versions; Windows adds colorama.
"""

_PLATFORM_ONLY = re.compile(r"nvidia-|cuda-|triton|colorama$|pywin32$")


def refresh(root: Path, python: tuple[int, int]) -> None:
    """Resolve pyproject.toml with its dev extra anew and write tools/constraints.txt.

    Raises:
        StartError: another Python than the oldest supported one is running (a newer one would choose versions
            that the oldest cannot install), or pip found no solution.
    """
    if sys.version_info[:2] != python:
        wanted = ".".join(map(str, python))
        raise StartError(
            f"Constraints are made with Python {wanted}, the oldest supported, not {platform.python_version()}.",
            f"python{wanted} tools/start.py lock      (Windows: py -{wanted} tools\\start.py lock)",
        )
    target = root / "tools" / "constraints.txt"
    with tempfile.TemporaryDirectory(prefix="aegis-lock-") as name:
        folder = Path(name)
        step = Step(1, 2, "make a fresh environment")
        venv.EnvBuilder(with_pip=True, symlinks=not WINDOWS).create(folder / "venv")
        step.done()
        step = Step(2, 2, "resolve the newest versions that fit pyproject.toml")
        pins = _resolve(root, folder, step)
        step.done(f"{len(pins)} packages")
    header = HEADER.format(python=f"{python[0]}.{python[1]}", system=platform.system())
    write_atomically(target, header + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items())))
    say(f"Written: {target}")


def _resolve(root: Path, folder: Path, step: Step) -> dict[str, str]:
    python = folder / "venv" / ("Scripts/python.exe" if WINDOWS else "bin/python")
    report, log = folder / "report.json", folder / "lock.log"
    code = run_logged(
        [
            python,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--no-input",
            "--report",
            report,
            "-e",
            ".[dev]",
        ],
        log=log,
        cwd=root,
        environment=child_environment(PYTHONUNBUFFERED="1"),
        tick=lambda: step.tick(advice.where_pip_is(log)),
    )
    if code != 0:
        step.clear()
        raise StartError(
            f"pip found no set of packages (exit code {code}). Its log ends with:\n\n{advice.tail(log)}\n",
            advice.cause(log),
            code=7,
        )
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["name"]
    return pins_of(json.loads(report.read_text(encoding="utf-8")), project)


def pins_of(report: dict[str, object], project: str) -> dict[str, str]:
    """Name to version of what pip would install, without the project itself and local version labels.

    A label such as +cpu says where a build came from; the same line must hold for builds from elsewhere.
    """
    installs = report["install"]
    assert isinstance(installs, list)
    pins = {normalise(item["metadata"]["name"]): item["metadata"]["version"].split("+")[0] for item in installs}
    return {
        name: version
        for name, version in pins.items()
        if name not in {normalise(project), "pip", "setuptools"} and not _PLATFORM_ONLY.match(name)
    }


def normalise(name: str) -> str:
    """A package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
