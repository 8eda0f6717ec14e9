"""Registers the commands by name: `aegis --help` needs names and texts alone, and a command is built when called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

PANELS = ("Before a run", "A run, stage by stage", "Results", "Use and share the model", "More")
"""The groups of `aegis --help`, in the order in which people need them."""
_ORDER = (
    "doctor", "init", "data", "plan", "run", "train", "merge", "export-gguf", "verify", "list", "watch", "report",
    "quantize-study", "chat", "serve", "ollama", "card", "push", "help", "version", "import-soul",
)  # fmt: skip
"""The commands in that order: that of their modules' imports is the alphabet's."""


@dataclass(frozen=True)
class Entry:
    """A registered command, which is built when it is needed.

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
        function = options.with_homes(function)
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
    """Register a function as a command under its own name or `name`."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        called = name or function.__name__
        _entries[called] = Entry(called, function, panel, settings, examples)
        return function

    return add


def commands() -> dict[str, Entry]:
    """Return every command by name, panel by panel."""
    return dict(sorted(_entries.items(), key=lambda item: (PANELS.index(item[1].panel), _ORDER.index(item[0]))))
