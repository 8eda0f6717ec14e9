"""Tests of `aegis ollama` with a stand-in for the program `ollama` that records how it was called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.runs.manifest import Manifest
from aegis.runs.publish import publishing
from aegis.runs.run import Run
from tests.processes import wait_until
from tests.recorded import export_facts

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a script of a POSIX shell")

Called = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run $(touch pwned)")
    facts = export_facts(name="Phi-3-Mine 日本")
    with publishing(run.gguf, Manifest("export-gguf", {}, {}, facts)) as staging:
        (staging.path / "Modelfile").write_text("FROM ./mine.gguf\n", encoding="utf-8")
        (staging.path / facts["files"]["Q4_K_M"]).touch()
    return run


@pytest.fixture
def aegis(run: Run, tmp_path: Path) -> Called:
    """Run `aegis ollama …` with the stand-in on PATH, or without it."""
    programs = tmp_path / "programs"
    programs.mkdir()

    def call(
        *arguments: str, codes: dict[str, int] | None = None, there: bool = True
    ) -> subprocess.CompletedProcess[str]:
        if there:
            script = "".join(f'[ "$1" = {word} ] && code={code}\n' for word, code in (codes or {}).items())
            log = tmp_path / "calls"
            (programs / "ollama").write_text(
                f'#!/bin/sh\nprintf "%s\\n" "$@" "--" >> "{log}"\ncode=0\n{script}echo "ollama $1"\nexit $code\n'
            )
            (programs / "ollama").chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AEGIS_")}
        path = f"{programs}:{os.environ['PATH']}" if there else "/nowhere"
        environment |= {"PATH": path, "PYTHONPATH": f"{ROOT / 'pipeline'}:{ROOT}", "AEGIS_LANG": "en"}
        command = [sys.executable, "-m", "aegis", "ollama", "--run", str(run.root), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr
        return done

    return call


def calls(tmp_path: Path) -> list[list[str]]:
    text = (tmp_path / "calls").read_text(encoding="utf-8")
    return [part.strip("\n").split("\n") for part in text.split("--\n") if part]


def test_the_model_is_created_and_then_talked_to(aegis: Called, run: Run, tmp_path: Path) -> None:
    done = aegis()
    assert done.returncode == 0, done.stderr
    create, talk = calls(tmp_path)
    assert create[0] == "create"
    assert create[2:] == ["-f", str(run.gguf / "Modelfile")]
    assert talk == ["run", create[1]]
    assert (done.stdout, "ollama create" in done.stderr) == ("ollama run\n", True)
    assert not (tmp_path / "pwned").exists()


def test_the_model_can_be_created_only(aegis: Called, tmp_path: Path) -> None:
    done = aegis("--name", "samurai:latest", "--create-only", "--json")
    assert done.returncode == 0, done.stderr
    ((word, name, *_),) = calls(tmp_path)
    assert (word, name) == ("create", "samurai:latest")
    assert json.loads(done.stdout.splitlines()[-1])["report"] == {"name": "samurai:latest"}


@pytest.mark.parametrize(
    ("arguments", "codes", "there", "code", "shown"),
    [
        ((), {"create": 1}, True, 7, "`ollama create phi-3-mine`"),
        ((), {"run": 3}, True, 7, "ended with exit code 3"),
        ((), {}, False, 3, "ollama create"),
        (("--name", "-rf"), {}, True, 2, "no model with the name"),
        (("--name", "a\nb"), {}, True, 2, "no model with the name"),
        (("--name", "../x/"), {}, True, 2, "no model with the name"),
    ],
)
def test_what_goes_wrong_is_said(
    aegis: Called, arguments: tuple[str, ...], codes: dict[str, int], there: bool, code: int, shown: str
) -> None:
    done = aegis(*arguments, codes=codes, there=there)
    assert (done.returncode, shown in done.stderr) == (code, True), done.stderr


def test_ctrl_c_is_an_interruption_and_no_failure_of_ollama(run: Run, tmp_path: Path) -> None:
    """As at a terminal, where both processes get it."""
    begun = tmp_path / "begun"
    program = tmp_path / "ollama"
    program.write_text(f'#!/bin/sh\ntrap "exit 1" INT\necho > "{begun}"\nwhile :; do sleep 0.1; done\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "AEGIS_LANG": "en"}
    environment["PYTHONPATH"] = f"{ROOT / 'pipeline'}:{ROOT}"
    command = [sys.executable, "-m", "aegis", "ollama", "--run", str(run.root), "--create-only"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        wait_until(begun.exists, limit_s=60)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        printed = process.stderr.read()
    assert (process.returncode, "interrupted" in printed, "ended with exit code" in printed) == (130, True, False)
