"""What several files of tests need is made once per test run, for all processes of pytest-xdist."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Once:
    """Makes files and folders in a folder that all processes of a test run share. No test writes into them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def __call__(self, name: str, make: Callable[[Path], object]) -> Path:
        """Return the path of this name; the first process that asks makes it, at a path of another folder."""
        path, part = self._folder / name, self._folder / f"{name}.making" / name
        with FileLock(self._folder / f"{name}.lock"):
            if not path.exists():
                shutil.rmtree(part.parent, ignore_errors=True)
                part.parent.mkdir()
                make(part)
                part.rename(path)
        return path


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Return what makes a thing once per test run."""
    folder = tmp_path_factory.getbasetemp()
    # a worker's own folder stands in that of the run
    return Once((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "once")
