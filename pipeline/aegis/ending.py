"""How a command ends: with its exit code, and a message for a person; the traceback goes to the log file."""

from __future__ import annotations

import errno
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from aegis import disk, logs, streams
from aegis.errors import AegisError
from aegis.messages import phrase

_TERMINATED = {"SIGHUP": 129, "SIGTERM": 143, "SIGBREAK": 143}
"""Exit codes by signal. SIGBREAK is Windows' Ctrl-Break."""

_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """Whether a traceback is shown as well, and not only kept."""
    global _tracebacks
    _tracebacks = wanted


def to_its_end(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and leave the process with DESIGN's exit codes."""
    _heed_signals()
    try:
        # a command's typer.Exit comes back as its number, and so does Ctrl-C
        code = command() or 0
        if code == 130:
            complain(phrase("ending.interrupted"))
        sys.exit(code)
    except AegisError as error:
        _keep(error)
        complain(error.what, error.why, error.fix)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        complain(phrase("ending.interrupted"))
        sys.exit(130)
    except SystemExit as leaving:
        # typer and rich end the process with 1 when whoever read our output has gone
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        streams.silence()
        sys.exit(141)
    except BrokenPipeError:
        streams.silence()
        sys.exit(141)
    except OSError as error:
        if disk.is_full(error):
            fault = disk.full(Path(error.filename or "."), error)
            complain(fault.what, fault.why, fault.fix)
            sys.exit(fault.exit_code)
        if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            sys.exit(_our_bug(error))
        complain(phrase("ending.unusable", path=error.filename), error.strerror or "")
        sys.exit(2)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors, which typer does not name
            complain(error.format_message(), fix=phrase("ending.help"))
            sys.exit(2)
        sys.exit(_our_bug(error))


def _heed_signals() -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for name in _TERMINATED:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, _terminate)


def _terminate(number: int, _frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that what is half written is removed and llama.cpp's tools end as well."""
    complain(phrase("ending.terminated"))
    sys.exit(_TERMINATED[signal.Signals(number).name])


def _our_bug(error: Exception) -> int:
    _keep(error)
    trouble = phrase("ending.bug", kind=type(error).__name__, error=error)
    report = "ending.report" if _tracebacks else "ending.report_or_debug"
    complain(trouble, fix=phrase(report, log=logs.log_path()))
    return 1


def _keep(error: Exception) -> None:
    logs.ended_by(error)
    if _tracebacks:
        logs.show(error)


def complain(what: str, why: str = "", fix: str = "") -> None:
    """Tell a person what happened, why, and what to do, each as far as there is something to say."""
    from rich.cells import cell_len

    lines = [f"aegis: {what}"]
    for label, text in ((phrase("ending.why"), why), (phrase("ending.do"), fix)):
        for line in text.splitlines():
            lines.append(f"  {label}: {line}")
            label = " " * cell_len(label)
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        streams.silence()
