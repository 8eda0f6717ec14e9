"""The commands that train: run, train."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.commands import setup
from aegis.cli.live_page import live_page, refuse_web
from aegis.cli.options import (
    DryRunOption,
    FileOption,
    NewRunOption,
    OverwriteOption,
    PresetOption,
    WebOption,
)
from aegis.cli.paths import announce_overwrite, existing_run, new_run
from aegis.cli.registry import command
from aegis.errors import UsageError
from aegis.messages import layout, phrase

if TYPE_CHECKING:
    from aegis.cli.checked_settings import AllSettings
    from aegis.runs.run import Run

_STAGES = "A run, stage by stage"


@command(
    _STAGES,
    "aegis run --preset demo",
    "aegis run --preset borea-12gb --dataset mine.jsonl",
    "aegis run --base-model owner/name --dataset mine.jsonl --run artifacts/NAME",
    settings=("train", "merge", "export", "verify"),
)
def run(
    flags: dict[str, Any],
    run: NewRunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    web: WebOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run all stages in order, resume where an earlier run stopped, and verify the result."""
    from aegis.cli.checked_settings import all_settings

    chosen = all_settings(preset, config, flags)
    if dry_run:
        refuse_web(web)
        setup.show_plan(chosen, run)
        return
    from aegis.runs.overwriting import places_of_training

    run_dir = new_run(run, chosen.train.base_model)
    announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
    output.say_that_it_loads()
    with live_page(run_dir, web), output.signs_of_life(), run_dir.lock():
        _run_all(chosen, run_dir, overwrite)


def _run_all(chosen: AllSettings, run_dir: Run, overwrite: bool) -> None:
    from aegis import run_all
    from aegis.chat.ask import Limits, ask
    from aegis.cli.screens import results
    from aegis.cli.screens import verify as verify_screen
    from aegis.config.presets import DEMO
    from aegis.demo.corpus import demo_prompts
    from aegis.runs.stage_times import StageTimes
    from aegis.stages.report import report as report_stage

    times = StageTimes()
    exported, verdict = run_all.run_all(
        chosen.train, chosen.merge, chosen.export, chosen.verify, run_dir, overwrite=overwrite, times=times
    )
    progress.result(verify_screen.verified(verdict, run_dir.verify, layout.terminal_columns()), verdict.as_json())
    progress.result(f"{results.exported(exported)}\n", exported)  # ready; the report may take its time
    if chosen.train.base_model == DEMO and chosen.train.dataset == DEMO:
        prompts = demo_prompts()
        answers = ask(run_dir, prompts, Limits(), models=("base", "gguf"))
        progress.result(results.before_and_after(prompts, answers), answers)
    with times.stage("report"):
        progress.say(phrase("run.report", place=run_dir.report))
        page = report_stage(run_dir, Limits(), reuse=not overwrite)
    progress.result(str(page), {"report": page})


@command(
    _STAGES,
    "aegis train --preset borea-12gb --dataset mine.jsonl --dry-run",
    "aegis train --resume --run artifacts/NAME",
    settings=("train",),
)
def train(
    flags: dict[str, Any],
    run: NewRunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="resume from the newest checkpoint; an error if there is none")
    ] = False,
    overwrite: OverwriteOption = False,
    web: WebOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="take ten real steps to measure memory and speed; keep nothing")
    ] = False,
) -> None:
    """Train an adapter and a soul."""
    if dry_run:
        refuse_web(web)
    if resume and overwrite:
        raise UsageError("train.resume_and_overwrite")
    from aegis.cli.checked_settings import all_settings
    from aegis.cli.screens import results
    from aegis.runs.overwriting import places_of_training, refuse_finished

    if resume and not (flags or preset or config):
        chosen, run_dir = None, existing_run(run)
    else:
        chosen = all_settings(preset, config, flags)
        run_dir = new_run(run, chosen.train.base_model)
    if not dry_run and os.environ.get("WORLD_SIZE", "1") == "1":  # with several processes, the stage reports it once
        announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
        refuse_finished(run_dir, overwrite=overwrite)
        if resume and not any(run_dir.checkpoints.glob("step_*")):  # before torch is loaded
            raise UsageError("train.no_checkpoint", run_root=run_dir.root)
    output.say_that_it_loads()
    from aegis.stages import train as stage
    from aegis.training.resume import resume_config
    from aegis.verification.run_precheck import Later

    settings = chosen.train if chosen else resume_config(run_dir)
    later = Later(chosen.merge, chosen.export) if chosen else Later()
    if dry_run:
        report = stage.dry_run(settings, later)
        progress.result(results.dry_run(report, settings), report)
        return
    with live_page(run_dir, web):
        report = stage.train(settings, run_dir, resume=resume, overwrite=overwrite, later=later)
    progress.result(results.trained(report, run_dir.root), report)
