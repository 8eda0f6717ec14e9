"""Tests of the commands that serve a page: which files `serve` takes, and `watch` as a program."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from aegis import llama_cpp, progress
from aegis.chat import serving
from aegis.cli.commands.chat import serve
from aegis.cli.commands.train import train as train_command
from aegis.cli.live_page import live_page
from aegis.errors import UsageError
from aegis.report.web import local
from aegis.runs.facts import ExportFacts
from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from aegis.stages.train import train
from tests.chat.serving.conftest import require_packages
from tests.trained import small_training, write_chats


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


def test_a_live_page_a_training_follows_it_and_changes_no_byte(
    quick_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked all the time, and ends with the training; a second page has an address of its own."""
    require_packages("starlette", "uvicorn")
    # a fixed port may be another program's, which would answer when the page has ended
    monkeypatch.setattr(local, "beside", partial(local.beside, port=0))
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    config = small_training(quick_base, write_chats(tmp_path / "data.jsonl"))
    run, alone = Run(tmp_path / "mine"), Run(tmp_path / "alone")
    steps: set[float] = set()
    over = threading.Event()

    def ask(url: str) -> None:
        while not over.is_set():
            with urlopen(f"{url}/state", timeout=30) as answer:
                steps.update(json.load(answer)["series"]["step"])

    with live_page(run, True), live_page(alone, True):
        url, other = (re.search(r"http://[\d.:]+", line)[0] for line in lines)  # type: ignore[index]
        assert url != other
        asking = threading.Thread(target=ask, args=[url])
        asking.start()
        train(config, run)
        over.set()
        asking.join()
    assert len(steps) > 2
    for address in (url, other):
        with pytest.raises(URLError):
            urlopen(f"{address}/state", timeout=30)
    train(config, alone)
    for name in ("adapter_model.safetensors", "soul.safetensors"):
        assert (run.adapter / name).read_bytes() == (alone.adapter / name).read_bytes()


def test_a_page_is_served_by_the_first_process_alone_and_only_if_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(progress, "say", lines.append)
    with live_page(Run(tmp_path), False):
        pass
    monkeypatch.setenv("RANK", "1")
    with live_page(Run(tmp_path), True):
        pass
    assert lines == []


def test_a_dry_run_has_no_page() -> None:
    with pytest.raises(UsageError) as raised:
        train_command({}, web=True, dry_run=True)
    assert raised.value.key == "cli.web_of_dry_run"
