"""Command-line options: those that commands share, and one for every field of a stage's config."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.config.presets import PRESETS
from aegis.config.stage_config import StageConfig

RunOption = Annotated[Path | None, typer.Option("--run", help="directory of the run (default: artifacts/<base>)")]
PresetOption = Annotated[str | None, typer.Option("--preset", help=f"a set of settings: {', '.join(PRESETS)}")]
FileOption = Annotated[
    Path | None, typer.Option("--config", help="TOML with [train], [merge], [export], [verify] and [study]")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="check everything and print what it needs; write nothing")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace existing output")]


def add_setting_options(*models: type[StageConfig]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option for every field of the stage configs; the given values arrive in `flags`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        fields = {name: field for model in models for name, field in model.model_fields.items()}
        for name, field in fields.items():
            flag = "--" + name.replace("_", "-")
            kind: Any = field.annotation
            if kind is bool:
                declarations = [f"{flag}/--no-{flag[2:]}"]
            else:
                declarations = [flag]
            if kind == tuple[str, ...]:
                kind = list[str]
            shown = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            text = (field.description or "") + (f" [{shown}]" if shown not in (None, "") else "")
            option = typer.Option(*declarations, help=text, show_default=False)
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
                )
            )

        def run(**given: Any) -> None:
            flags = {name: given.pop(name) for name in fields}
            # Typer passes an empty list for a repeatable option that was not given
            command(**given, flags={name: value for name, value in flags.items() if value not in (None, [])})

        run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        )
        return run

    return decorate
