"""Other programs: their environment, those on our console, and the end of those that we started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

WINDOWS = os.name == "nt"
GRACE_SECONDS = 5.0

# Settings of the caller's shell that would make our Python or pip import or install something else (uv has --python),
# and one, usual in containers, under which every start of Python compiles torch's sources again: three times as slow.
_LEFT_OUT = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "__PYVENV_LAUNCHER__",
    "PYTHONDONTWRITEBYTECODE",
)


class Stopped(BaseException):
    """A signal asked us to end; it passes every `except Exception`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def catch_signals() -> None:
    """Turn Ctrl-C, SIGTERM, SIGHUP and CTRL_BREAK into `Stopped`, so that the children are ended before we go."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        raise Stopped(signum)

    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP: keep that
            signal.signal(number, stop)


def child_environment(**extra: str) -> dict[str, str]:
    """Our environment for a child: UTF-8 everywhere, nothing that redirects uv, pip or Python elsewhere."""
    environment = {key: value for key, value in os.environ.items() if key.upper() not in _LEFT_OUT}
    return {**environment, "PYTHONUTF8": "1", "PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **extra}


def run_attached(argv: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]) -> int:
    """Run argv on our console and return its exit code. What stops us is passed on; it closes down in its own way."""
    sys.stdout.flush()
    process = subprocess.Popen([str(part) for part in argv], cwd=cwd, env=environment)
    stopped: Stopped | None = None
    while True:
        try:
            code = process.wait()
        except Stopped as stop:
            stopped = stopped or stop
            if stop.signum != signal.SIGINT:
                process.terminate()
            # a terminal's Ctrl-C reaches parent and child alike, and a second one means "at once" to the child
            elif not WINDOWS and not (sys.stdin and sys.stdin.isatty()):
                process.send_signal(signal.SIGINT)
        else:
            break
    if stopped is not None:
        raise stopped
    return exit_code(code)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End the process with its whole group; nicely at first: on SIGINT uv and pip remove their temporary files."""
    if WINDOWS:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(process.pid)], capture_output=True, check=False)
        process.wait()
        return
    try:
        _signal_group(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:  # a compiler, say, that outlived the group's leader
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group that has just ended
        os.killpg(group, number)


def exit_code(returncode: int) -> int:
    """A child that died of signal n counts as 128 + n, as shells have it."""
    return 128 - returncode if returncode < 0 else returncode
