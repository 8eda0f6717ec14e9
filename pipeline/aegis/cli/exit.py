"""How a command ends: its exit code and an error message; the traceback goes to the log file."""

from __future__ import annotations

import errno
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer

from aegis.cli import logfile, streams
from aegis.cli.broken_installation import is_foreign, print_diagnosis
from aegis.errors import AegisError
from aegis.messages import phrase
from aegis.messages.safe import shown
from aegis.signals import signal_handlers, terminating_signals

_TEMPORARY = re.compile(r"\.([^/\\]+)\.(?:staging|part|trash)-\d+")
_tracebacks = False


def show_tracebacks(wanted: bool) -> None:
    """Set whether tracebacks are also printed, not only logged."""
    global _tracebacks
    _tracebacks = wanted


def run_and_exit(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process with one of the exit codes of `aegis.errors`."""
    codes = {
        number: code for number, code in terminating_signals().items() if number != signal.SIGINT
    }  # Python handles SIGINT itself

    def terminate(number: int, _frame: FrameType | None) -> None:
        """End as after Ctrl-C, so that partial files are removed and llama.cpp's tools end too."""
        print_error(phrase("ending.terminated"))
        sys.exit(codes[number])

    def with_handlers() -> int | None:
        with signal_handlers(codes, terminate):
            return command()

    # a launcher that lost one process terminates the others: ignore that while their own error is printed
    with signal_handlers(codes, signal.SIG_IGN):
        code = _code_of(with_handlers)
        # CPython notes a Ctrl-C inside exec(str), where dataclasses are made, and `python -m` then ends by the signal,
        # not with this code; the next exec deletes the note (run_eval_code_obj in Python/pythonrun.c)
        exec("")  # noqa: S102
        sys.exit(code)


def _code_of(command: Callable[[], int | None]) -> int:
    try:
        # Typer returns the code of typer.Exit, and 130 after Ctrl-C
        code = command() or 0
        if code == 130:
            print_error(phrase("ending.interrupted"))
        return code
    except AegisError as error:
        return _print_aegis_error(error)
    except (KeyboardInterrupt, typer.Abort):
        print_error(phrase("ending.interrupted"))
        return 130
    except SystemExit as leaving:
        overtaken = leaving.__context__ if leaving.__cause__ is None else None
        if isinstance(overtaken, AegisError):  # a signal came while this error was being handled
            return _print_aegis_error(overtaken)
        # typer and rich exit with 1 when the reader of our output has closed the pipe
        if not isinstance(overtaken, BrokenPipeError):
            raise
        streams.silence()
        return 141
    except BrokenPipeError:
        streams.silence()
        return 141
    except ImportError as error:
        return _incomplete(error)
    except OSError as error:
        return _os_error(error)
    except Exception as error:
        if hasattr(error, "format_message"):  # Click's usage errors, which Typer does not export
            return _print_parse_error(error)
        return _our_bug(error)


def _print_parse_error(error: Any) -> int:
    from aegis.cli import parser

    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "aegis"
    print_error(parser.describe_parse_error(error), fix=phrase("ending.help", command=command))
    return 2


def _print_aegis_error(error: AegisError) -> int:
    _keep(error)
    print_error(error.what, error.why, error.fix)
    return error.exit_code


def _os_error(error: OSError) -> int:
    """Report a full disk or a forbidden path as a user's error, any other OSError as a bug."""
    from aegis.runs import disk

    if disk.is_full(error):
        fault = disk.full(Path(_final_name(error.filename or ".")), error)
        print_error(fault.what, fault.why, fault.fix)
        return fault.exit_code
    if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
        return _our_bug(error)
    print_error(phrase("ending.unusable", path=_final_name(error.filename)), error.strerror or "")
    return 2


def _final_name(path: object) -> str:
    """Return the path under which a file of a temporary name would have been published."""
    return _TEMPORARY.sub(r"\1", str(path))


def _incomplete(error: ImportError) -> int:
    """Report a missing, truncated or wrong package as an incomplete installation, an import of ours as a bug."""
    from aegis.doctor import installation

    (packages,) = installation.packages()
    if packages.state != "fail" and not is_foreign(error):
        return _our_bug(error)
    _keep(error)
    if packages.state != "fail":
        return print_diagnosis(error)
    print_error(phrase("ending.incomplete", error=error), packages.detail, packages.cure)
    return 3


def _our_bug(error: Exception) -> int:
    _keep(error)
    trouble = phrase("ending.bug", kind=type(error).__name__, error=error)
    report = "ending.report" if _tracebacks else "ending.report_or_debug"
    print_error(trouble, fix=phrase(report, log=logfile.log_path()))
    return 1


def _keep(error: Exception) -> None:
    logfile.ended_by(error)
    if _tracebacks:
        logfile.show(error)


def print_error(what: str, why: str = "", fix: str = "") -> None:
    """Print what happened, why, and what to do to stderr; empty parts are left out."""
    from rich.cells import cell_len

    lines = [f"aegis: {what}"]
    for label, text in ((f"{phrase('ending.why')}: ", why), (f"{phrase('ending.do')}: ", fix)):
        for line in text.splitlines():
            lines.append(f"  {label}{line}")
            label = " " * cell_len(label)
    try:
        sys.stderr.write(shown("\n".join(lines)) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        streams.silence()
