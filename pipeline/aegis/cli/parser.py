"""Typer's texts in the reader's language: --help, and errors in the command line.

Errors are recognised by class name, because Typer may bundle its own Click.
"""

from __future__ import annotations

import difflib
from typing import Any, get_args

from typer.core import TyperCommand, TyperGroup

from aegis.cli import help, registry
from aegis.errors import UsageError
from aegis.messages import phrase

HELP_OPTIONS = ["-h", "--help"]


class Command(TyperCommand):
    """A command with AEGIS's own help texts and layout."""

    def get_help(self, ctx: Any) -> str:
        return help.format_help(self, ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:  # Click does not set the context of every error
                error.ctx = ctx  # type: ignore[attr-defined]
            raise

    def get_short_help_str(self, limit: int = 45) -> str:
        return help.first_sentence(self.help or "")

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return help.translate_completions(super().shell_complete(ctx, incomplete))


class Commands(TyperGroup):
    """The command group, which builds a command when it is needed.

    Click's own error names an unknown command only inside its text.
    """

    def get_help(self, ctx: Any) -> str:
        return help.format_help(self, ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(registry.commands())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = registry.commands().get(cmd_name)
        return found and found.built

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return help.translate_completions(super().shell_complete(ctx, incomplete))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name.startswith("-") or ctx.resilient_parsing or name in registry.commands():
            return super().resolve_command(ctx, args)
        raise no_command(name)


def no_command(name: str) -> UsageError:
    """Return the error for an unknown command, with the nearest names."""
    close = ", ".join(map(repr, difflib.get_close_matches(name, registry.commands())))
    nearest = phrase("usage.did_you_mean", names=close) if close else ""
    return UsageError("usage.no_command", name=name, nearest=nearest)


def describe_parse_error(error: Any) -> str:
    """Describe a parser error in the reader's language, or return its English if its class is unknown here."""
    kind = type(error).__name__
    if kind == "MissingParameter" and error.param is not None:
        return phrase("usage.missing_argument", name=_name(error.param))
    if kind == "NoSuchOption":
        names = ", ".join(sorted(error.possibilities or ()))
        possible = phrase("usage.possible", names=names) if names else ""
        return phrase("usage.no_option", name=error.option_name, possible=possible)
    if kind == "BadOptionUsage":
        # one class for two errors, which differ only in their text
        key = "usage.takes_no_value" if "does not take" in error.message else "usage.needs_value"
        return phrase(key, name=error.option_name)
    if kind == "BadParameter" and error.param is not None:
        return phrase("usage.bad_value", name=_name(error.param), problem=_problem(error))
    if kind == "UsageError" and hasattr(getattr(error.ctx, "command", None), "commands"):
        return phrase("usage.missing_command")
    if kind == "UsageError":
        return phrase("usage.extra", arguments=error.message.partition(" (")[2].removesuffix(")"))
    return str(error.format_message())


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    return " / ".join(map(repr, parameter.opts))


def _problem(error: Any) -> str:
    """Describe what is wrong with a value; Typer validates with pydantic, older versions with Click's types."""
    from aegis.messages import validation

    found = error.__cause__.errors()[0] if hasattr(error.__cause__, "errors") else None
    choices = get_args(getattr(getattr(error.param, "type_descriptor", None), "annotation", None))
    if found is not None and found["type"] == "value_error" and choices:
        return phrase("usage.no_choice", value=found["input"], choices=", ".join(map(repr, choices)))
    return str(error.message) if found is None else validation.describe_validation_error(found)
