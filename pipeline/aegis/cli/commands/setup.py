"""The commands before a run: doctor, init, plan; and the settings that plan and run share."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aegis import progress
from aegis.cli.options import FileOption, OverwriteOption, PresetOption, RunOption, add_setting_options
from aegis.cli.registry import command
from aegis.cli.screens import plan as plan_screen
from aegis.cli.screens import results
from aegis.config.resolve import Config, resolve
from aegis.config.settings import DEMO, ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.config.stage_config import StageConfig
from aegis.errors import UsageError
from aegis.messages import layout, phrase


@dataclass(frozen=True)
class AllSettings:
    """The settings of every stage."""

    train: TrainConfig
    merge: MergeConfig
    export: ExportConfig
    verify: VerifyConfig


def train_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """Return the settings of train; the embedded base, asked for by name, has its own defaults.

    Raises:
        UsageError: no base is given.
    """
    settings = resolve(TrainConfig, preset=preset, file=config, flags=flags)
    if "base_model" not in settings.model_fields_set:
        raise UsageError("cli.no_base")
    if settings.base_model == DEMO:
        return resolve(TrainConfig, preset=preset or DEMO, file=config, flags=flags)
    if "dataset" not in settings.model_fields_set:
        progress.warn(phrase("cli.demo_data"))
    return settings


def all_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> AllSettings:
    """Return the settings of all stages, from flags for any of them."""
    train = train_settings(preset, config, _only(flags, TrainConfig))
    chosen = DEMO if preset is None and train.base_model == DEMO else preset

    def settings(model: type[Config]) -> Config:
        return resolve(model, preset=chosen, file=config, flags=_only(flags, model))

    verify = settings(VerifyConfig)
    if verify.max_kept_kl is not None and train.keep_weight == 0:  # known before the first step, not after the last
        raise UsageError("verify.kept_nothing")
    return AllSettings(train, settings(MergeConfig), settings(ExportConfig), verify)


def _only(flags: dict[str, Any], model: type[StageConfig]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name in model.model_fields}


@command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout")] = False,
) -> None:
    """Check this machine and the installation: one line per item, and the command that fixes a problem."""
    from aegis.cli.console.reporters import JsonReporter
    from aegis.doctor import PROBES, Finding, examine, is_ready

    if as_json:
        progress.install(JsonReporter())
    findings: list[Finding] = []
    with progress.task(phrase("doctor.looking"), len(PROBES), "look") as bar:
        for finding in examine():
            findings.append(finding)
            bar.advance()
    ready = is_ready(findings)
    progress.result(results.diagnosed(findings, layout.terminal_columns()), {"ready": ready, "findings": findings})
    if not ready:
        raise typer.Exit(3)


@command()
@add_setting_options(TrainConfig, MergeConfig, ExportConfig, VerifyConfig)
def plan(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
) -> None:
    """Estimate what a run needs: model, data, adapter, memory by part, disk, time. Writes nothing."""
    show_plan(all_settings(preset, config, flags), run)


def show_plan(chosen: AllSettings, run: Path | None) -> None:
    """Make a plan and print it."""
    from aegis.runs.run import Run
    from aegis.stages.plan import plan as stage

    run_dir = Run(run) if run else Run.named_after(chosen.train.base_model)
    report = stage(chosen.train, chosen.merge, chosen.export, chosen.verify, run_dir)
    progress.result(plan_screen.planned(report, chosen.train, layout.terminal_columns()), report)


@command()
def init(
    base_model: Annotated[str | None, typer.Option(help="Hub id or folder of the base (default: ask)")] = None,
    dataset: Annotated[str | None, typer.Option(help="data file or Hub id (default: ask)")] = None,
    out: Annotated[Path, typer.Option(help="output file")] = Path("aegis.toml"),
    overwrite: OverwriteOption = False,
) -> None:
    """Write a commented aegis.toml for your base and data."""
    from aegis.stages import init_config

    if out.exists() and not overwrite:
        raise UsageError("preparing.exists", out=out)
    base_model = base_model or _asked(phrase("preparing.which_base"), "--base-model")
    dataset = dataset or _asked(phrase("preparing.which_data"), "--dataset")
    remarks = init_config.check(base_model, dataset)
    init_config.write(out, base_model, dataset)
    for remark in remarks:
        progress.warn(remark)
    progress.result(
        results.initialised(out), {"file": out, "base_model": base_model, "dataset": dataset, "remarks": remarks}
    )


def _asked(question: str, flag: str) -> str:
    if not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("preparing.missing", flag=flag)
    while True:
        answer = str(typer.prompt(question, err=True)).strip()
        if answer:
            return answer
