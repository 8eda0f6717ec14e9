"""The commands before a run: doctor, init, plan."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis import progress
from aegis.cli.options import FileOption, NewRunOption, OverwriteOption, PresetOption
from aegis.cli.paths import new_run
from aegis.cli.registry import command
from aegis.errors import UsageError
from aegis.messages import layout, phrase

if TYPE_CHECKING:
    from aegis.cli.checked_settings import AllSettings


@command("Before a run", "aegis doctor")
def doctor() -> None:
    """Check this machine and the installation: one line per item, and the command that fixes a problem."""
    from aegis.cli.screens import results
    from aegis.doctor import PROBES, examine, is_ready

    with progress.task(phrase("doctor.looking"), len(PROBES), "look") as bar:
        findings = list(examine(bar.advance))
    ready = is_ready(findings)
    progress.result(results.diagnosed(findings, layout.terminal_columns()), {"ready": ready, "findings": findings})
    if not ready:
        raise typer.Exit(3)


@command(
    "Before a run",
    "aegis data mine.jsonl --preset borea-12gb",
    "aegis data mine.jsonl --base-model owner/name --columns question=prompt",
    settings=("train",),
)
def data(
    flags: dict[str, Any],
    file: Annotated[
        str | None, typer.Argument(help="data file, folder, pattern or Hub id (default: --dataset)")
    ] = None,
    rows: Annotated[int, typer.Option(min=0, max=10_000, help="number of rows to show")] = 3,
    preset: PresetOption = None,
    config: FileOption = None,
) -> None:
    """Show what training makes of your data: rows, tokens, masks, and what is left out and why. Writes nothing."""
    from aegis.cli import output
    from aegis.cli.checked_settings import train_settings
    from aegis.cli.screens import data as data_screen

    settings = train_settings(preset, config, flags if file is None else flags | {"dataset": file})
    output.say_that_it_loads()
    with output.signs_of_life():
        from aegis.stages.inspect_data import inspect_data

        view = inspect_data(settings, rows)
    progress.result(data_screen.inspected(view, layout.terminal_columns()), view)
    if view.too_many_bad:
        raise typer.Exit(4)


@command(
    "Before a run",
    "aegis plan --preset borea-12gb --dataset mine.jsonl",
    "aegis plan --config aegis.toml --max-length 1024",
    settings=("train", "merge", "export", "verify"),
)
def plan(
    flags: dict[str, Any],
    run: NewRunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
) -> None:
    """Estimate what a run needs: model, data, adapter, memory by part, disk, time. Writes nothing."""
    from aegis.cli.checked_settings import all_settings

    show_plan(all_settings(preset, config, flags), run)


def show_plan(chosen: AllSettings, run: Path | None) -> None:
    """Make a plan and print it."""
    from aegis.cli import output
    from aegis.cli.screens import plan as plan_screen

    run_dir = new_run(run, chosen.train.base_model)
    output.say_that_it_loads()
    with output.signs_of_life():
        from aegis.stages.plan import plan as stage

        report = stage(chosen.train, chosen.merge, chosen.export, chosen.verify, run_dir)
    progress.result(plan_screen.planned(report, chosen.train, layout.terminal_columns()), report)


@command(
    "Before a run",
    "aegis init",
    "aegis init --preset borea-12gb --dataset mine.jsonl",
    "aegis init --base-model owner/name --dataset mine.jsonl",
)
def init(
    preset: PresetOption = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id or folder of the base (default: ask)")] = None,
    dataset: Annotated[str | None, typer.Option(help="data file or Hub id (default: ask)")] = None,
    out: Annotated[Path, typer.Option(help="output file")] = Path("aegis.toml"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a commented aegis.toml for your base and data, or with the settings of a preset."""
    from aegis.cli.screens import results
    from aegis.config.presets import PRESETS
    from aegis.config.resolve import settings_of
    from aegis.stages import init_config

    if out.exists() and not overwrite:
        raise UsageError("preparing.exists", out=out)
    if preset is None and base_model is None:
        answer = _asked(phrase("preparing.which_base", presets=", ".join(PRESETS)), "--base-model")
        preset, base_model = (answer, None) if answer in PRESETS else (None, answer)
    settings = settings_of(preset) if preset else {}
    base_model = base_model or settings["train"]["base_model"]
    if dataset is None:
        dataset = settings.get("train", {}).get("dataset") or _asked(phrase("preparing.which_data"), "--dataset")
    remarks = init_config.check(base_model, dataset)
    init_config.write(out, base_model, dataset, settings)
    for remark in remarks:
        progress.say(remark)
    progress.result(
        results.initialised(out),
        {"file": out, "preset": preset, "base_model": base_model, "dataset": dataset, "remarks": remarks},
    )


def _asked(question: str, flag: str) -> str:
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("preparing.missing", flag=flag)
    while True:
        answer = str(typer.prompt(question, err=True)).strip()
        if answer:
            return answer
