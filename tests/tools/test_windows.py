"""Tests of what can be seen of Windows elsewhere: the locked packages have wheels there, and the README's lines fit.

The index is asked through uv; without a network that test is skipped.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import start
from startup import environment
from startup.torch_build import blocks

from tests.tools import small_project as small

ROOT = Path(__file__).resolve().parents[2]
COMPILED = "llama-cpp-python"


def hashed(text: str) -> dict[str, set[str]]:
    """Return the hashes of every package by "name==version"."""
    return {block.split(" ")[0]: set(re.findall("sha256:([0-9a-f]{64})", block)) for block in blocks(text)}


@pytest.mark.parametrize("python", ["3.11", "3.14"])
def test_every_locked_package_has_a_wheel_for_windows_with_a_locked_hash(
    tools: Path, tmp_path: Path, python: str
) -> None:
    """But llama.cpp's binding, whose wheel has a place of its own. The control has one hash less."""
    uv = small.uv_program(tmp_path)
    if uv is None:
        pytest.skip("uv is neither here nor to be fetched")
    out = tmp_path / "windows.txt"
    command: list[str | Path] = [
        uv, "pip", "compile", "--quiet", "--no-config", "--no-header", "--no-annotate", "--generate-hashes",
        "--python-platform", "x86_64-pc-windows-msvc", "--python-version", python,
        "--only-binary", ":all:", "--no-binary", COMPILED,
        "--constraints", tools / "constraints.txt", "--output-file", out, ROOT / "pyproject.toml",
    ]  # fmt: skip
    own = {key: value for key, value in os.environ.items() if not key.startswith(("UV_", "PIP_"))}
    done = subprocess.run(command, capture_output=True, text=True, env=own, timeout=250)
    if done.returncode and re.search("connect|network|resolve host|dns|timed out", done.stderr, re.IGNORECASE):
        pytest.skip(f"uv could not ask the index: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
    found, locked = hashed(out.read_text(encoding="utf-8")), hashed((tools / "constraints.txt").read_text("utf-8"))
    assert len(found) > 40
    assert unknown(found, locked) == set()
    assert unknown(found, {**locked, next(iter(found)): set()}) == {next(iter(found))}


def unknown(found: dict[str, set[str]], locked: dict[str, set[str]]) -> set[str]:
    return {name for name, hashes in found.items() if not hashes or not hashes <= locked.get(name, set())}


@pytest.mark.parametrize("readme", ["README.md", ".github/README.ja.md"])
def test_the_lines_for_powershell_fit_the_set_up(readme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = re.findall(r"# Windows PowerShell: (.*)", (ROOT / readme).read_text(encoding="utf-8"))
    setup, activate, *language = lines
    assert setup.startswith(r"py tools\start.py ")
    start.parse(setup.split()[2:])
    monkeypatch.setattr(environment, "WINDOWS", True)
    place = environment.Environment(ROOT)
    assert ROOT.joinpath(*activate.split("\\")).parent == place.scripts
    assert place.python == place.scripts / "python.exe"
    assert language == (['$env:AEGIS_LANG = "ja"'] if "ja" in readme else [])
