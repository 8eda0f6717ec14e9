"""Tests of the distribution: the wheel of an sdist has everything inside aegis, and finds llama.cpp's source there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "pipeline", "vendor_llama_cpp", "tools/distribution.py")
FOUND = "from aegis.vendored import vendor_llama_cpp as v; print(v.__name__, v.load_pin().version, len(v.TEXTS))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the contents of a wheel that was built from the sdist."""
    if int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("distribution")
    checkout = folder / "checkout"
    for part in PARTS:
        (checkout / part).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / part, checkout / part)
    built(checkout, f"build_sdist({str(folder)!r})")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    built(source, f"build_wheel({str(folder)!r})")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def built(source: Path, call: str) -> None:
    code = f"from setuptools import build_meta; build_meta.{call}"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]


def found(path: str, cwd: Path) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-P", "-c", FOUND]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()


def test_nothing_but_aegis_is_installed(installed: Path) -> None:
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"aegis"}
    package, inside = ROOT / "vendor_llama_cpp", installed / "aegis" / "vendor_llama_cpp"
    assert {path.name for path in package.iterdir() if path.is_file()} == {path.name for path in inside.iterdir()}


def test_the_source_of_llama_cpp_is_found_in_a_wheel_and_in_a_checkout(installed: Path, tmp_path: Path) -> None:
    name, *rest = found(str(installed), tmp_path)
    assert name == "aegis.vendor_llama_cpp"
    assert ["vendor_llama_cpp", *rest] == found(os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]), tmp_path)
