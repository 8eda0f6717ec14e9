"""Tests that child processes are logged, run without the caller's settings, and end with their parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from startup.children import child_environment
from startup.console import Step
from startup.runner import Runner

from tests.processes import runs, wait_until

# a parent that runs a child that starts a grandchild, as start.py runs uv that runs a compiler
PARENT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from startup.children import catch_signals
from startup.console import Step
from startup.runner import Runner
catch_signals()
runner = Runner(Path.cwd(), Path(sys.argv[2]))
grandchild = "import time; time.sleep(60)"
child = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {grandchild!r}]); "
child += "print(p.pid, flush=True); p.wait()"
runner.run(Step(1, 1, "a step"), [sys.executable, "-c", child])
"""


def test_output_and_exit_code_are_passed_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import sys; print('日本語'); sys.stderr.write('why'); sys.exit(9)"
    assert Runner(tmp_path, log).run(Step(1, 1, "a step"), [sys.executable, "-c", script]) == 9
    text = log.read_text(encoding="utf-8")
    assert "日本語" in text
    assert "why" in text


def test_settings_that_name_other_paths_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("VIRTUAL_ENV", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example/simple")
    environment = child_environment(HF_HUB_OFFLINE="1")
    assert "/elsewhere" not in environment.values()
    assert environment["PIP_INDEX_URL"] == "https://index.example/simple"  # the user's own index holds
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_bytecode_is_written_although_the_shell_forbids_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Containers set it, and every start of Python would compile torch's sources again."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    (tmp_path / "some_module.py").write_text("", encoding="utf-8")
    subprocess.run([sys.executable, "-c", "import some_module"], cwd=tmp_path, env=child_environment(), check=True)
    assert any(tmp_path.glob("__pycache__/some_module.*.pyc"))


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_start_leaves_no_process(tools: Path, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tools), str(log)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(lambda: last_line(log).isdigit())
    grandchild = int(last_line(log))
    assert runs(grandchild)
    parent.send_signal(number)
    assert parent.wait(20) != 0
    wait_until(lambda: not runs(grandchild), limit_s=5)


def last_line(log: Path) -> str:
    return log.read_text(encoding="utf-8").rstrip().rpartition("\n")[2] if log.exists() else ""


ATTACHED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from startup.children import Stopped, catch_signals, child_environment, run_attached
catch_signals()
child = "import signal, sys, time; close = lambda *_: (time.sleep(0.5), print('closed'), sys.exit());"
child += "signal.signal(int(sys.argv[1]), close); print('ready', flush=True); time.sleep(60)"
try:
    run_attached([sys.executable, "-c", child, sys.argv[2]], cwd=Path.cwd(), environment=child_environment())
except Stopped as stop:
    print(stop.signum)
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_on_the_console_closes_down_in_its_own_way(tools: Path, number: signal.Signals) -> None:
    """Only the parent gets the signal, as from `kill`; a terminal gives Ctrl-C to both."""
    argv = [sys.executable, "-u", "-c", ATTACHED, str(tools), str(int(number))]
    parent = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.send_signal(number)
    assert parent.communicate(timeout=20)[0] == f"closed\n{int(number)}\n"
