"""Tests of the distribution: the wheel of an sdist has everything inside aegis, and finds llama.cpp's source there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import pytest

from tools.distribution import repository

ROOT = Path(__file__).parents[2]
PARTS = ("pyproject.toml", "README.md", "LICENSE", "pipeline", "vendor_llama_cpp", "tools/distribution.py")
ADDRESS = {"GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "team/aegis", "GITHUB_SHA": "c0ffee"}
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
    environment = os.environ | ADDRESS
    built(checkout, f"build_sdist({str(folder)!r})", environment)
    (packed,) = folder.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "sdist", filter="data")
    (source,) = (folder / "sdist").iterdir()
    built(source, f"build_wheel({str(folder)!r})", environment)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def built(source: Path, call: str, environment: Mapping[str, str]) -> None:
    code = f"from setuptools import build_meta; build_meta.{call}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True, timeout=200
    )
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


def test_the_page_on_an_index_has_the_addresses_of_the_repository(installed: Path) -> None:
    """Every link that is relative in the README leads to a file that the repository has."""
    (folder,) = installed.glob("*.dist-info")
    known = metadata.PathDistribution(folder).metadata
    pages = dict(line.split(", ") for line in known.get_all("Project-URL", []))
    assert pages["Homepage"] == "https://git.example/team/aegis"
    assert pages["Changelog"] == "https://git.example/team/aegis/blob/c0ffee/.github/CHANGELOG.md"
    text = str(known.get_payload())
    raw, blob = (
        re.findall(rf"https://git.example/team/aegis/{kind}/c0ffee/([^)#]+)", text) for kind in ("raw", "blob")
    )
    assert ".github/pictures/training.png" in raw
    assert "tools/README.md" in blob
    assert [path for path in (*raw, *blob) if not (ROOT / path).exists()] == []
    relative = re.compile(r"\]\((?![a-z]+:|#)")
    assert not relative.search(text)
    assert relative.search((ROOT / "README.md").read_text(encoding="utf-8"))


def test_without_a_known_repository_the_metadata_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ADDRESS, "AEGIS_REPOSITORY", "AEGIS_REVISION"):
        monkeypatch.delenv(name, raising=False)
    assert repository() is None
    monkeypatch.setenv("AEGIS_REPOSITORY", "https://git.example/us/fork/")
    assert repository() == ("https://git.example/us/fork", "main")
