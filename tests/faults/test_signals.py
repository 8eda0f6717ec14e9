"""Tests of signals to a command: the step is finished and saved, and the printed command resumes."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from aegis.runs.manifest import verify_directory
from aegis.runs.run import Run
from aegis.training.checkpoint import list_steps
from tests.faults.forked import Ended, strike
from tests.faults.harness import Laboratory

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX")
LONG = ("--max-steps", "60", "--save-steps", "1000", "--annealing-steps", "20", "--max-length", "32")


def train(laboratory: Laboratory, folder: Path, *more: str, blows: Sequence[dict[str, Any]] = ()) -> Ended:
    return laboratory.forked.aegis(
        folder, *laboratory.arguments("train"), *LONG, *more, blows=blows, environment=laboratory.shared_cache
    )


def trained(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Run(folder / "run").adapter.iterdir()}


def losses(folder: Path) -> list[tuple[int, float]]:
    rows = map(json.loads, Run(folder / "run").metrics.read_text(encoding="utf-8").splitlines())
    return [(row["step"], row["task_loss"]) for row in rows]


@pytest.fixture(scope="module")
def whole(laboratory: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training that no signal reached."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(laboratory, folder).code == 0
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_and_the_printed_command_resumes(
    laboratory: Laboratory, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    ended = train(laboratory, stopped, blows=[strike(number, rows=5)])
    assert (ended.code, "Traceback" in ended.output) == (code, False), ended.output
    (saved,) = list_steps(Run(stopped / "run").checkpoints)
    verify_directory(saved)
    printed = re.search(r"continue with: aegis (.+)", ended.output)
    assert printed, ended.output
    again = laboratory.forked.aegis(stopped, *printed[1].split(), environment=laboratory.shared_cache)
    assert again.code == 0, again.output
    assert trained(stopped) == trained(whole)
    assert losses(stopped) == losses(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_two_signals_stop_at_once_and_damage_nothing(
    laboratory: Laboratory, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Two signals in a row, several times: every checkpoint is complete, and the same command resumes."""
    metrics = Run(tmp_path / "run").metrics
    for more in (2, 3, 4):
        # as many steps after those of the time before: a blow before the command has begun would be none of its own
        rows = more + (metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
        ended = train(laboratory, tmp_path, "--save-steps", "1", blows=[strike(number, rows=rows), strike(number)])
        # the second may find an interpreter that has put its handlers away already: to a shell that is the same
        assert ended.code in (code, -number), ended.output
        # nor can a finalizer that it finds raise: Python prints that, and goes on
        rest = re.sub(r"^Exception ignored in.*\n(Traceback.*\n([ ].*\n)*.*\n)?", "", ended.output, flags=re.MULTILINE)
        assert not re.search("^Traceback", rest, re.MULTILINE), ended.output
        for saved in list_steps(Run(tmp_path / "run").checkpoints):
            verify_directory(saved)
    assert train(laboratory, tmp_path, "--save-steps", "1").code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_other_stages_remove_their_files_after_a_signal(
    laboratory: Laboratory, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """During conversion: no output file stays, and the converter, in a separate session, ends too."""
    laboratory.operations("export")
    shutil.copytree(laboratory.start("export"), tmp_path / "place")
    run = Run(tmp_path / "place" / "run")
    before = {path.name for path in run.gguf.iterdir()}
    ended = laboratory.forked.aegis(
        tmp_path / "place", *laboratory.arguments("export"), blows=[strike(number, file=".part-")]
    )
    assert (ended.code, "Traceback" in ended.output) == (code, False), ended.output
    assert {path.name for path in run.gguf.iterdir()} == before
    assert [path.name for path in run.root.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("nohup", "code"), [(False, 129), (True, 0)])
def test_a_closed_terminal_saves_a_checkpoint_unless_under_nohup(
    laboratory: Laboratory, tmp_path: Path, nohup: bool, code: int
) -> None:
    """The step is saved; under nohup, training continues to its end without a terminal."""
    place = tmp_path / "place"
    place.mkdir()
    run = Run(place / "run")
    # one that is to be stopped must not have ended before
    more = () if nohup else ("--max-steps", "2000")
    ended = in_a_terminal_closed_at_step(5, place, nohup, *laboratory.arguments("train"), *LONG, *more)
    log = (place / "logs" / "aegis.log").read_text(encoding="utf-8")
    assert ended == code, log
    assert re.findall("ended by (\\w+)", log) == ([] if nohup else ["Interrupted"])
    if not nohup:
        (saved,) = list_steps(run.checkpoints)
        verify_directory(saved)
        assert not run.adapter.exists()
        return
    verify_directory(run.adapter)
    assert run.metrics.read_bytes().count(b"\n") == 60


def in_a_terminal_closed_at_step(step: int, folder: Path, nohup: bool, *arguments: str) -> int:
    """Run aegis from a shell on a terminal, close the terminal after a number of steps, and return the exit code."""
    import pty

    metrics = Run(folder / "run").metrics
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)  # whatever pytest was started with
        os.environ |= {
            "AEGIS_CACHE_DIR": str(folder / "cache"),
            "AEGIS_LOG_DIR": str(folder / "logs"),
            "OMP_NUM_THREADS": "1",
        }
        os.execv(sys.executable, [sys.executable, "-m", "aegis", *arguments])
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= step) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.01)[0]:
            os.read(terminal, 1 << 16)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
