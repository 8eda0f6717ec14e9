"""The commands by name: `aegis --help` needs their names and texts alone, and each is built when it is called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

PANELS = ("Before a run", "A run, stage by stage", "What came of it", "Use and share the model", "More")
"""The groups of `aegis --help`, in the order in which people need them."""


@dataclass(frozen=True)
class Entry:
    """A command that is known, and not built yet.

    Attributes:
        settings: sections of the config whose settings are options of the command.
        examples: command lines for its help.
    """

    name: str
    function: Callable[..., None]
    panel: str
    settings: tuple[str, ...]
    examples: tuple[str, ...]

    @property
    def help(self) -> str:
        """The text of its docstring."""
        return inspect.cleandoc(self.function.__doc__ or "")

    @cached_property
    def built(self) -> Any:
        """The Click command."""
        import typer

        from aegis.cli import options, parser

        function = options.with_settings(self.function, self.settings) if self.settings else self.function
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        names = {"help_option_names": parser.HELP_OPTIONS}
        single.command(self.name, cls=parser.Command, context_settings=names)(function)
        command = typer.main.get_command(single)
        command.params += options.everywhere()
        return command


_entries: dict[str, Entry] = {}


def command(
    panel: str, *examples: str, name: str | None = None, settings: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function as a command of its name, or of another one."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        called = name or function.__name__
        _entries[called] = Entry(called, function, panel, settings, examples)
        return function

    return add


def commands() -> dict[str, Entry]:
    """Return every command by name, panel by panel."""
    return dict(sorted(_entries.items(), key=lambda item: PANELS.index(item[1].panel)))
