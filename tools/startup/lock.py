"""Refreshing tools/constraints.txt: the exact versions and hashes, for every platform and Python that is supported."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from startup import uv
from startup.children import child_environment, run_attached
from startup.console import StartError, say

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
    target, project = root / "tools" / "constraints.txt", root / "pyproject.toml"
    build = tomllib.loads(project.read_text(encoding="utf-8"))["build-system"]["requires"]
    with tempfile.TemporaryDirectory(prefix="aegis-lock-") as name:
        folder = Path(name)
        program = uv.find_or_fetch(folder, _run)
        (folder / "build.in").write_text("\n".join((*build, *_BUILD)), encoding="utf-8")
        (folder / "uv.in").write_text("uv\n", encoding="utf-8")
        packages = _compile(program, folder, target, "--extra", "dev", project, folder / "build.in")
        itself = _compile(program, folder, uv.PINNED, folder / "uv.in")
    target.write_text(HEADER + packages, encoding="utf-8", newline="\n")
    uv.PINNED.write_text(itself, encoding="utf-8", newline="\n")
    say(f"{target}\n{uv.PINNED}")


def _compile(program: Path, folder: Path, before: Path, *sources: str | Path) -> str:
    """What uv resolves of `sources` for all platforms; versions of `before` are preferred."""
    out = folder / before.name
    if before.is_file():
        out.write_bytes(before.read_bytes())
    # fmt: off
    _run([
        program, "pip", "compile", "--universal", "--generate-hashes", "--python-version", "3.11", *sources,
        "--no-annotate", "--no-header", "--quiet", "--output-file", out,
    ])
    # fmt: on
    return out.read_text(encoding="utf-8")


def _run(argv: Sequence[str | Path]) -> None:
    code = run_attached(argv, cwd=Path.cwd(), environment=child_environment())
    if code != 0:
        raise StartError(f"{Path(argv[0]).name}: exit code {code}", "Its own lines above say why.", code=7)
