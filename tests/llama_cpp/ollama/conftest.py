"""Fixture: renders as Ollama does, with Go's text/template."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.llama_cpp.ollama.chats import Conversation

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
        [go, "build", "-o", str(program), str(Path(__file__).parent / "main.go")],
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
