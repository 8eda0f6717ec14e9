"""Tests of a closed stdout or stderr, or one on a full disk: the command ends with an exit code and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INIT = "init --base-model base --dataset rows.jsonl"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full and a shell")


@pytest.fixture(autouse=True)
def _what_init_names(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "phi3"}', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}', encoding="utf-8")


def shell(line: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "AEGIS_LANG": "en", "AEGIS_LOG_DIR": str(tmp_path)}
    command = f'"{sys.executable}" -m aegis {line}'
    return subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_output_to_a_closed_stream_is_dropped(closed: str, tmp_path: Path) -> None:
    ended = shell(f"{INIT} {closed}", tmp_path)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert (tmp_path / "aegis.toml").read_text(encoding="utf-8").startswith("#"), "no line of the screen is in the file"


@pytest.mark.parametrize("command", ["--version", "--help", f"--json {INIT}"])
def test_results_that_cannot_be_written_are_an_error_of_stdout(command: str, tmp_path: Path) -> None:
    """Not one of the folder that the command works in, which has room."""
    ended = shell(f"{command} > /dev/full", tmp_path)
    assert ended.returncode == 3
    assert "cannot be written to stdout" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert str(tmp_path) not in ended.stderr


def test_errors_that_cannot_be_written_leave_the_exit_code(tmp_path: Path) -> None:
    assert shell("nonsense 2> /dev/full", tmp_path).returncode == 2
