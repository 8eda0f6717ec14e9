"""Refreshing tools/constraints.txt: the exact versions and hashes, for every platform and Python that is supported."""

from __future__ import annotations

import re
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from startup import advice, uv
from startup.children import child_environment, run_logged
from startup.console import StartError, Step, say
from startup.environment import write_atomically
from startup.language import either

OLDEST_PYTHON = "3.11"
HEADER = """\
# The exact versions that `tools/start.py` installs, with their hashes, as constraints for uv: a block binds a
# package that is needed anyway, and installs nothing by itself. For Linux, Windows and macOS and Python 3.11 to 3.14.
# Made by `python tools/start.py lock`; do not edit by hand.
#
# torch and what stands beside it (nvidia-*, cuda-*, triton) are those of the public index. Where another build fits
# the machine's card, its version holds and these hashes do not.
"""
# what pyproject.toml of llama-cpp-python asks for where it is compiled; CMake and ninja where the system has none
_BUILD = ("scikit-build-core[pyproject]>=0.9.2", "cmake", "ninja")


def refresh(root: Path) -> None:
    """Resolve pyproject.toml with its dev extra anew, and uv, and write tools/constraints.txt and startup/uv.txt.

    Versions stay as they are where they still fit: delete the file first to get the newest of all.

    Raises:
        StartError: uv found no solution.
    """
    target = root / "tools" / "constraints.txt"
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="aegis-lock-") as name:
        folder = Path(name)
        step = Step(1, 2, either("find or fetch uv", "uv を用意"))
        program = uv.find_or_fetch(folder, _runner(root, folder / "uv.log", step))
        step.done(str(program))
        step = Step(2, 2, either("resolve the versions that fit pyproject.toml", "pyproject.toml に合う版を解決"))
        run = _runner(root, folder / "lock.log", step)
        build = folder / "build.in"
        build.write_text("\n".join((*project["build-system"]["requires"], *_BUILD)), encoding="utf-8")
        packages = _compile(run, program, folder / "packages.txt", target, root / "pyproject.toml", build)
        own = folder / "uv.in"
        own.write_text("uv\n", encoding="utf-8")
        itself = _compile(run, program, folder / "own.txt", uv.PINNED, own)
        step.done(f"{len(re.findall('^[a-z]', packages, re.MULTILINE))} packages")
    write_atomically(target, HEADER + packages)
    write_atomically(uv.PINNED, itself)
    say(f"{target}\n{uv.PINNED}")


def _compile(
    run: Callable[[Sequence[str | Path]], None], program: Path, out: Path, before: Path, *sources: Path
) -> str:
    """What uv resolves of `sources` for all platforms; versions of `before` are preferred."""
    if before.is_file():
        out.write_bytes(before.read_bytes())
    # fmt: off
    run([
        program, "pip", "compile", "--universal", "--generate-hashes", "--python-version", OLDEST_PYTHON,
        *(("--extra", "dev") if sources[0].suffix == ".toml" else ()), *sources,
        "--no-annotate", "--no-header", "--quiet", "--output-file", out,
    ])
    # fmt: on
    return out.read_text(encoding="utf-8")


def _runner(root: Path, log: Path, step: Step) -> Callable[[Sequence[str | Path]], None]:
    def run(argv: Sequence[str | Path]) -> None:
        code = run_logged(argv, log=log, cwd=root, environment=child_environment(), tick=lambda: step.tick("uv"))
        if code != 0:
            step.clear()
            raise StartError(f"uv ({code}):\n\n{advice.tail(log)}\n", advice.cause(log), code=7)

    return run
