"""Tests that an error is reported once with its exit code, and that the process is restored afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from aegis.cli.exit import run_and_exit
from aegis.errors import DivergedError, UsageError


def shown(command: Callable[[], int | None], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as ended:
        run_and_exit(command)
    return ended.value.code, capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")
def test_a_signal_does_not_hide_an_error_that_is_being_raised(capsys: pytest.CaptureFixture[str]) -> None:
    """A launcher sends one to the others as soon as a process has died; what that did to this one is to be read."""

    def command() -> int:
        try:
            raise UsageError("cli.no_run", path="here", hint="")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    code, output = shown(command, capsys)
    assert code == 2
    assert "there is no run at here" in output

    def alone() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    assert shown(alone, capsys) == (143, "aegis: terminated\n")


def test_a_process_that_ends_because_of_another_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        try:
            raise DivergedError("train.diverged", step=1, loss=1.0, norm=1.0)
        except DivergedError as error:
            raise SystemExit(error.exit_code) from error

    assert shown(command, capsys) == (6, "")


INTERRUPTED = """
import sys
from aegis.cli.exit import run_and_exit
def command():
    exec("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)")
if sys.argv[1:]:
    run_and_exit(command)
try:
    command()
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.skipif(os.name == "nt", reason="os.kill ends the process on Windows")
@pytest.mark.parametrize(("argument", "code"), [("ours", 130), (None, -signal.SIGINT)])
def test_ctrl_c_while_a_module_is_imported_ends_with_its_own_code(
    tmp_path: Path, argument: str | None, code: int
) -> None:
    """A dataclass is made by exec(str). The control: Python ends by the signal, if it was started with -m."""
    (tmp_path / "interrupted.py").write_text(INTERRUPTED, encoding="utf-8")
    argv = [sys.executable, "-m", "interrupted", *([argument] if argument else [])]
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(argv, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path, check=False)
    assert done.returncode == code


def test_the_callers_handlers_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert shown(lambda: 0, capsys) == (0, "")
    assert signal.getsignal(signal.SIGTERM) is before
