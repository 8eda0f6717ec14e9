"""Command-line options: those that commands share, and one for every field of a stage's config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from aegis.cli import output
from aegis.config.presets import PRESETS


def _runs(incomplete: str) -> list[str]:
    from aegis.runs.run import Run

    return [str(run.root) for run in Run.known() if str(run.root).startswith(incomplete)]


def _presets(incomplete: str) -> list[str]:
    return [name for name in PRESETS if name.startswith(incomplete)]


def _quants(incomplete: str) -> list[str]:
    from aegis.llama_cpp import IMATRIX_TYPES, QUANT_TYPES

    return [name for name in (*QUANT_TYPES, *IMATRIX_TYPES) if name.startswith(incomplete.upper())]


RunOption = Annotated[
    Path | None,
    typer.Option("--run", help="directory of the run (default: the one used last in artifacts/)", autocompletion=_runs),
]
NewRunOption = Annotated[
    Path | None, typer.Option("--run", help="directory of the run (default: artifacts/<base>)", autocompletion=_runs)
]
PresetOption = Annotated[
    str | None,
    typer.Option("--preset", help=f"a set of settings: {', '.join(PRESETS)}", autocompletion=_presets),
]
FileOption = Annotated[
    Path | None, typer.Option("--config", help="TOML with [train], [merge], [export], [verify] and [study]")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="check everything and print what it needs; write nothing")
]
WebOption = Annotated[
    bool,
    typer.Option("--web", help="live page of the training in the browser, as by aegis watch, until the command ends"),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="replace existing output")]

QuietOption = Annotated[bool, typer.Option("--quiet", help="only warnings and results")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON lines on stdout, warnings on stderr")]
DebugOption = Annotated[bool, typer.Option("--debug", help="show the traceback of whatever ends the command")]

EVERYWHERE = "With every command"
_GROUPS = {
    "base_model": "Base and data",
    "rotation": "The soul",
    "keep_weight": "Keep: hold off forgetting",
    "lora_r": "The adapter",
    "max_steps": "Steps and speed",
    "logging_steps": "Log, checkpoints, held-out rows",
    "dtype": "Merge",
    "quant": "Export",
    "text": "Verify",
}
"""The field with which a group of settings begins, and its title in --help."""


def everywhere() -> list[Any]:
    """Return --quiet, --json and --debug for one command; they may be anywhere on the command line."""

    def declared(quiet: QuietOption = False, json: JsonOption = False, debug: DebugOption = False) -> None:
        """Declare the options."""

    single = typer.Typer(add_completion=False)
    single.command()(declared)
    found = typer.main.get_command(single).params
    for option in found:
        option.expose_value = False
        option.callback = _chosen
        option.rich_help_panel = EVERYWHERE  # type: ignore[attr-defined]
    return found


def _chosen(_context: Any, option: Any, wanted: bool) -> None:
    if wanted:
        output.choose(option.name)


def with_homes(command: Callable[..., None]) -> Callable[..., None]:
    """Return a command whose paths may begin with `~`: a shell leaves it in `--run=~/x`, and Windows' everywhere."""

    @wraps(command)
    def run(**given: Any) -> None:
        from aegis.runs.disk import at_home

        command(**{name: at_home(value) if isinstance(value, Path) else value for name, value in given.items()})

    return run


def with_settings(command: Callable[..., None], sections: tuple[str, ...]) -> Callable[..., None]:
    """Return a command with an option for every field of these configs; the given values arrive in `flags`."""
    parameters = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
    options = {option.name: option for option in _options_of(sections)}

    def run(**given: Any) -> None:
        flags = {name: given.pop(name) for name in options}
        # Typer passes an empty list for a repeatable option that was not given
        command(**given, flags={name: value for name, value in flags.items() if value not in (None, [])})

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*parameters, *options.values()]]
    )
    return run


def _options_of(sections: tuple[str, ...]) -> Iterator[inspect.Parameter]:
    from aegis.config.settings import SECTIONS

    group = None
    seen = set()
    for section in sections:
        for name, field in SECTIONS[section].model_fields.items():
            group = _GROUPS.get(name, group)
            if name in seen:
                continue
            seen.add(name)
            flag = "--" + name.replace("_", "-")
            kind: Any = field.annotation
            declarations = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
            if kind == tuple[str, ...]:
                kind = list[str]
            option = typer.Option(
                *declarations,
                help=field.description,
                show_default=name != "base_model" and _default(field.default),
                rich_help_panel=group if len(sections) > 1 or section == "train" else None,
                autocompletion=_quants if name == "quant" else None,
            )
            yield inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
            )


def _default(value: object) -> str | bool:
    """Return a setting's default as --help shows it; False if it has none."""
    if isinstance(value, bool):
        return "on" if value else "off"
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    return False if shown in (None, "") else str(shown)
