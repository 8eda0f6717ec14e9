"""The commands about the program itself: help, version."""

from __future__ import annotations

from typing import Annotated

import typer

from aegis import __version__, progress
from aegis.cli import parser
from aegis.cli.registry import command, commands


@command("More", "aegis help train", name="help")
def show_help(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="COMMAND", help="command to describe")] = None,
) -> None:
    """Show the commands, or the options of one."""
    above = context.parent or context
    if name is None:
        text = above.command.get_help(above)
    elif (entry := commands().get(name)) is not None:
        text = entry.built.get_help(entry.built.make_context(name, [], parent=above, resilient_parsing=True))
    else:
        raise parser.no_command(name)
    progress.result(text, {"help": text})


@command("More", "aegis version --json")
def version() -> None:
    """Print the version of AEGIS."""
    progress.result(__version__, {"version": __version__})
