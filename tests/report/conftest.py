"""Ollama's way of rendering, by a real Go text/template."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.report.browser import Browser, started
from tests.report.chats import Conversation

Ollama = Callable[[str, Sequence[Conversation]], list[str]]


@pytest.fixture(scope="session")
def ollama(tmp_path_factory: pytest.TempPathFactory) -> Ollama:
    """Render conversations with a TEMPLATE; needs Go, which CI has."""
    go = shutil.which("go")
    if go is None:
        assert os.environ.get("CI") != "true", "CI installs Go (.ci/run)"
        pytest.skip("needs go on the PATH (Debian: golang-go)")
    folder = tmp_path_factory.mktemp("go")
    program = folder / "ollama.exe"
    subprocess.run(
        [go, "build", "-o", str(program), str(Path(__file__).parent / "ollama" / "main.go")],
        check=True,
        env={**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOTOOLCHAIN": "local"},
        timeout=240,
    )

    def render(template: str, conversations: Sequence[Conversation]) -> list[str]:
        job = json.dumps({"template": template, "conversations": conversations})
        done = subprocess.run([program], input=job.encode(), capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode()
        texts: list[str] = json.loads(done.stdout)
        return texts

    return render


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser; CI has one."""
    with started(tmp_path_factory.mktemp("chromium")) as found:
        if found is None:
            assert os.environ.get("CI") != "true", "CI installs Chromium (.ci/run)"
            pytest.skip("needs Chromium on the PATH (Debian: chromium)")
        yield found
