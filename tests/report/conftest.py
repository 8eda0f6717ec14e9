"""The browser that opens a report."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.report.browser import Browser, started


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; CI has one."""
    with started(tmp_path_factory.mktemp("chromium")) as found:
        if found is None:
            assert os.environ.get("CI") != "true", "CI installs Chromium (.ci/run)"
            pytest.skip("needs Chromium on the PATH (Debian: chromium)")
        yield found
