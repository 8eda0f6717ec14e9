"""The main program, and the options of all commands. Nothing here loads torch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from typing import Annotated

import typer

from aegis import __version__
from aegis.cli import exit, logfile, output, parser, streams
from aegis.cli.commands import about, chat, merge, runs, setup, share, train, verify
from aegis.cli.options import DebugOption, JsonOption, QuietOption
from aegis.errors import UsageError
from aegis.messages.secrets import malformed_address

COMMAND_MODULES = (setup, train, merge, verify, runs, share, chat, about)
"""Importing these modules registers their commands."""

app = typer.Typer(
    name="aegis",
    cls=parser.Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": parser.HELP_OPTIONS},
    help="Train a LoRA adapter and a soul on a language model, merge and fold both, and get a GGUF for llama.cpp.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_show_version)
    ] = False,
    quiet: QuietOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Settings that hold for every command."""
    logfile.begin(sys.argv[1:])
    output.begin()
    for name, wanted in (("quiet", quiet), ("json", json), ("debug", debug)):
        if wanted:
            output.choose(name)


def main() -> None:
    """Run a command."""
    streams.prepare()
    # the libraries' warnings address programmers, not users of a command
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    logfile.show_safely()
    exit.run_and_exit(_command)


def _command() -> int | None:
    _refuse_undecodable(sys.argv[1:])
    _refuse_empty(sys.argv[1:])
    if (variable := malformed_address()) is not None:
        raise UsageError("cli.malformed_address", variable=variable)
    code: int | None = app(sys.argv[1:] or ["--help"], prog_name="aegis", standalone_mode=False)
    return code


def _refuse_empty(arguments: list[str]) -> None:
    # a path that is empty would be the current folder: nobody means it where a variable of the shell is not set
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            raise UsageError("cli.empty", name=argument.removesuffix("=") or before)


def _refuse_undecodable(arguments: list[str]) -> None:
    # neither the libraries that read and write weights nor a manifest can hold such a path
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError("cli.not_utf8", argument=argument) from None
