"""The main program, and the options of all commands. Nothing here loads torch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from aegis import __version__, progress
from aegis.cli import exit, logfile, streams
from aegis.cli.commands import chat, pipeline, setup, share, verify
from aegis.cli.registry import app
from aegis.cli.shared import report_as_json
from aegis.errors import UsageError

_ORDER = [module.__name__ for module in (setup, pipeline, verify, share, chat)]
"""Order of the commands in `aegis --help`: the order in which people use them."""

app.registered_commands.sort(key=lambda command: _ORDER.index(command.callback.__module__ if command.callback else ""))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_show_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only warnings and results")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, warnings on stderr")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of whatever ends the command")] = False,
) -> None:
    """Settings that hold for every command."""
    from aegis.cli.console.reporters import ConsoleReporter

    exit.show_tracebacks(debug)
    logfile.begin(sys.argv[1:])

    if json:
        report_as_json()
        return
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # otherwise the Hub client shows its own bars
    progress.install(ConsoleReporter(quiet=quiet))


def main() -> None:
    """Run a command."""
    streams.prepare()
    # the libraries' warnings address programmers, not users of a command
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    exit.run_and_exit(_command)


def _command() -> int | None:
    _refuse_undecodable(sys.argv[1:])
    code: int | None = app(sys.argv[1:] or ["--help"], prog_name="aegis", standalone_mode=False)
    return code


def _refuse_undecodable(arguments: list[str]) -> None:
    # neither the libraries that read and write weights nor a manifest can hold such a path
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError("cli.not_utf8", argument=argument) from None
