"""Tests of the commands that serve a page: which files `serve` takes, and `watch` as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from aegis import llama_cpp
from aegis.chat import serving
from aegis.cli.commands.chat import serve
from aegis.errors import UsageError
from aegis.runs.facts import ExportFacts
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from tests.chat.serving.conftest import require_packages


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run that has exported two types."""
    run = Run(tmp_path / "run")
    facts = ExportFacts(name="m", context_tokens=64, files={"Q4_K_M": "m-Q4_K_M.gguf", "Q8_0": "m-Q8_0.gguf"})
    with publishing(run.gguf, Manifest("export-gguf", {}, {}, facts=facts.recorded())) as staging:
        for name in facts.files.values():
            (staging.path / name).touch()
    return run


def test_a_second_file_is_named_by_path_or_by_its_type_in_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[tuple[Path, ...], int]] = []
    contexts = {"m-Q4_K_M": 64, "m-Q8_0": 32, "base": 128}
    monkeypatch.setattr(llama_cpp, "trained_context", lambda path: contexts[path.stem])
    monkeypatch.setattr(serving, "serve", lambda *paths, context, **_: served.append((paths, context)))
    (tmp_path / "base.gguf").touch()
    first, second, other = run.gguf / "m-Q4_K_M.gguf", run.gguf / "m-Q8_0.gguf", tmp_path / "base.gguf"
    for beside, paths, context in (
        (None, (first,), 64),
        ("q8_0", (first, second), 32),
        (str(other), (first, other), 64),
    ):
        serve(run=run.root, beside=beside)
        assert served.pop() == (paths, context), beside
    serve(gguf=other, beside=str(second), context=16)
    assert served.pop() == ((other, second), 16)
    for given in ({"run": run.root, "beside": "Q5_K_M"}, {"gguf": other, "beside": "Q8_0"}):
        with pytest.raises(UsageError) as raised:
            serve(**given)
        assert raised.value.key == "cli.no_path"


def test_watch_is_a_program_that_serves_a_runs_numbers(tmp_path: Path) -> None:
    require_packages("starlette", "uvicorn")
    run = Run(tmp_path / "mine")
    run.root.mkdir()
    run.metrics.write_text('{"step": 3, "task_loss": 1.5}\n')
    command = [sys.executable, "-m", "aegis", "--json", "watch", "--run", str(run.root), "--port", "0"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            report = json.loads(process.stdout.readline())["report"]
            with urlopen(f"{report['page']}/state", timeout=30) as answer:
                assert json.load(answer)["series"]["task_loss"] == [1.5]
            with urlopen(report["page"], timeout=30) as answer:
                assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
                assert b"watch_waiting" in answer.read()
        finally:
            process.terminate()
