"""Tests that packages of which a file is missing or changed are found, and complete ones are not."""

import base64
import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from startup.records import broken


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder into which the real pip has installed a small package."""
    folder = tmp_path_factory.mktemp("records")
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    files = {
        "tiny/__init__.py": b"VALUE = 1\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        record = ""
        for name, content in files.items():
            archive.writestr(name, content)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
            record += f"{name},sha256={digest},{len(content)}\n"
        archive.writestr("tiny-1.0.dist-info/RECORD", record + "tiny-1.0.dist-info/RECORD,,\n")
    target = folder / "site-packages"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)],
        check=True,
        capture_output=True,
    )
    return target


@pytest.fixture
def site_packages(installed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(installed, tmp_path / "site-packages")


def test_an_installation_by_pip_is_complete(site_packages: Path) -> None:
    assert broken(site_packages) == []
    assert broken(site_packages, hashes=True) == []


@pytest.mark.parametrize(
    "name",
    [
        "tiny/__init__.py",
        "tiny-1.0.dist-info/METADATA",
        "tiny-1.0.dist-info/RECORD",
        "tiny-1.0.dist-info/INSTALLER",
    ],
)
@pytest.mark.parametrize("how", ["missing", "empty"])
def test_an_incomplete_installation_is_found(site_packages: Path, name: str, how: str) -> None:
    if how == "missing":
        (site_packages / name).unlink()
    else:
        (site_packages / name).write_bytes(b"")
    assert broken(site_packages) == [site_packages / "tiny-1.0.dist-info"]


def test_another_content_of_the_same_size_is_found_by_its_hash(site_packages: Path) -> None:
    (site_packages / "tiny" / "__init__.py").write_bytes(b"VALUE = 2\n")
    assert broken(site_packages) == []
    assert broken(site_packages, hashes=True) == [site_packages / "tiny-1.0.dist-info"]
