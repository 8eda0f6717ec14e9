"""Starting other programs: logged with signs of life, or attached to the console; and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

WINDOWS = os.name == "nt"
TICK_SECONDS = 0.5
GRACE_SECONDS = 5.0

# Settings of the caller's shell that would make our environment import or install something else.
_MISLEADING = (
    "PYTHONHOME",
    "PYTHONPATH",
    "PIP_TARGET",
    "PIP_PREFIX",
    "PIP_ROOT",
    "PIP_USER",
    "UV_SYSTEM_PYTHON",
    "UV_BREAK_SYSTEM_PACKAGES",
    "UV_PROJECT_ENVIRONMENT",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
    "__PYVENV_LAUNCHER__",
)


class Stopped(BaseException):
    """A signal other than Ctrl-C asked us to end; like Ctrl-C, it passes every `except Exception`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def catch_signals() -> None:
    """Turn SIGTERM, SIGHUP and CTRL_BREAK into `Stopped`, so that the children are ended before we go."""

    def stop(signum: int, _frame: FrameType | None) -> None:
        raise Stopped(signum)

    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP: keep that
            signal.signal(number, stop)


def child_environment(**extra: str) -> dict[str, str]:
    """Our environment for a child: UTF-8 everywhere, nothing that redirects uv, pip or Python elsewhere."""
    environment = {key: value for key, value in os.environ.items() if key.upper() not in _MISLEADING}
    environment.update(PYTHONUTF8="1", PYTHONNOUSERSITE="1", PIP_DISABLE_PIP_VERSION_CHECK="1")
    environment.update(extra)
    return environment


def run_logged(
    argv: Sequence[str | Path],
    *,
    log: Path,
    cwd: Path,
    environment: dict[str, str],
    tick: Callable[[], None],
    hold: int | None = None,
) -> int:
    """Run argv with its output appended to `log`, calling `tick` twice a second; return the exit code.

    Args:
        hold: a file descriptor that the child keeps open. It carries the set-up's lock: should we be killed
            while uv works on, the next start waits for that uv instead of working against it.
    """
    with log.open("ab") as sink:
        sink.write(("\n$ " + " ".join(map(str, argv)) + "\n").encode("utf-8"))
        sink.flush()
        process = subprocess.Popen(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=environment,
            start_new_session=not WINDOWS,  # a group of its own: uv, cmake and compilers end together
            pass_fds=[hold] if hold is not None and not WINDOWS else [],
        )
    with _ended_on_exit(process):
        while True:
            try:
                return _exit_code(process.wait(TICK_SECONDS))
            except subprocess.TimeoutExpired:
                tick()


def run_attached(argv: Sequence[str | Path], *, cwd: Path, environment: dict[str, str]) -> int:
    """Run argv on our console and return its exit code. A first Ctrl-C lets it close down in its own way."""
    sys.stdout.flush()
    process = subprocess.Popen([str(part) for part in argv], cwd=cwd, env=environment)
    try:
        return _exit_code(process.wait())
    except (KeyboardInterrupt, Stopped) as stop:
        _pass_on(process, stop)
        try:
            process.wait()
        except (KeyboardInterrupt, Stopped):
            _wait_then_kill(process)
        raise


def _pass_on(process: subprocess.Popen[bytes], stop: BaseException) -> None:
    """Tell the child what we were told, unless the terminal has told it already.

    A terminal's Ctrl-C reaches parent and child alike, and a second one means "at once" to the child.
    """
    if isinstance(stop, Stopped):
        process.terminate()
    elif not WINDOWS and not (sys.stdin and sys.stdin.isatty()):
        process.send_signal(signal.SIGINT)


@contextmanager
def _ended_on_exit(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End the child and all it started if we leave before it has ended."""
    try:
        yield
    except BaseException:
        if process.poll() is None:
            _interrupt_group(process.pid)
        _wait_then_kill(process)
        _kill_group(process.pid)
        raise


def _wait_then_kill(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + GRACE_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if process.poll() is None:
        process.kill()
        process.wait()


if sys.platform == "win32":

    def _interrupt_group(group: int) -> None:
        subprocess.run(["taskkill", "/F", "/T", "/PID", str(group)], capture_output=True, check=False)

    def _kill_group(group: int) -> None:
        """Nothing: taskkill has ended the whole tree."""

else:

    def _interrupt_group(group: int) -> None:
        """Ask nicely first: on SIGINT uv and pip remove their temporary files."""
        with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group that has just ended
            os.killpg(group, signal.SIGINT)

    def _kill_group(group: int) -> None:
        """End what outlived the group's leader, a compiler say."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _exit_code(returncode: int) -> int:
    """A child that died of signal n counts as 128 + n, as shells have it."""
    return 128 - returncode if returncode < 0 else returncode
