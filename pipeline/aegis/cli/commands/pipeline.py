"""The commands of the pipeline: run, train, merge, export-gguf, import-soul."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.commands import setup
from aegis.cli.options import (
    DryRunOption,
    FileOption,
    NewRunOption,
    OverwriteOption,
    PresetOption,
    RunOption,
    WebOption,
)
from aegis.cli.registry import command
from aegis.cli.shared import (
    announce_overwrite,
    existing_run,
    lock_unless_dry_run,
    page_beside,
    refuse_absent,
    refuse_web,
)
from aegis.errors import UsageError
from aegis.messages import layout, phrase

if TYPE_CHECKING:
    from aegis.cli.settings import AllSettings
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
    from aegis.cli.settings import all_settings

    chosen = all_settings(preset, config, flags)
    if dry_run:
        refuse_web(web)
        setup.show_plan(chosen, run)
        return
    from aegis.runs.overwriting import places_of_training
    from aegis.runs.run import Run

    run_dir = Run(run) if run else Run.named_after(chosen.train.base_model)
    announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
    output.say_that_it_loads()
    with page_beside(run_dir, web), output.signs_of_life():
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
    with times.stage("report"), run_dir.lock():
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
    from aegis.cli.screens import results
    from aegis.cli.settings import all_settings
    from aegis.runs.overwriting import places_of_training, refuse_finished
    from aegis.runs.run import Run

    if resume and run and not (flags or preset or config):
        chosen, run_dir = None, Run(run)
    else:
        chosen = all_settings(preset, config, flags)
        run_dir = Run(run) if run else Run.named_after(chosen.train.base_model)
    if not dry_run and os.environ.get("WORLD_SIZE", "1") == "1":  # with several processes, the stage reports it once
        announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
        refuse_finished(run_dir, overwrite=overwrite)
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
    with page_beside(run_dir, web):
        report = stage.train(settings, run_dir, resume=resume, overwrite=overwrite, later=later)
    progress.result(results.trained(report, run_dir.root), report)


@command(
    _STAGES,
    "aegis merge",
    "aegis merge --base-model owner/name --adapter FOLDER --out FOLDER",
    settings=("merge",),
)
def merge(
    flags: dict[str, Any],
    run: RunOption = None,
    base_model: Annotated[str | None, typer.Option(help="base model, instead of --run")] = None,
    revision: Annotated[str | None, typer.Option(help="Hub revision of the base")] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of the adapter, instead of --run")] = None,
    soul: Annotated[
        Path | None, typer.Option(help="soul.safetensors (default: the one in the adapter's folder)")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="output folder (default: <run>/merged)")] = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Merge the adapter into the base's 16-bit weights and fold the soul into the LM head."""
    from aegis.cli.screens import plan, results
    from aegis.config.resolve import resolve
    from aegis.config.settings import MergeConfig
    from aegis.runs.publish import refuse_existing

    settings = resolve(MergeConfig, preset=preset, file=config, flags=flags)
    run_dir = None
    if not (adapter or base_model):
        if soul or revision:
            raise UsageError("cli.soul_without_base")
        run_dir = existing_run(run)
    elif run or not (adapter and base_model and out):
        raise UsageError("cli.which_to_merge")
    with lock_unless_dry_run(run_dir, dry_run):
        if run_dir is not None:
            run_dir.require_finished("train")
            out = out or run_dir.merged
        assert out is not None
        refuse_existing(out, overwrite=overwrite)
        output.say_that_it_loads()
        from aegis.stages import merge as stage

        if run_dir is not None:
            inputs = stage.MergeInputs.from_run(run_dir)
        else:
            assert base_model is not None
            assert adapter is not None
            inputs = stage.MergeInputs(base_model, adapter, soul, revision)
        announce_overwrite(out, overwrite=overwrite and not dry_run)
        report = stage.merge(inputs, out, settings, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        progress.result(plan.merge_planned(report), report)
        return
    progress.result(results.merged(report, run_dir.root if run_dir else None), report)


@command("More", "aegis import-soul soul.pt", name="import-soul")
def import_soul(
    soul: Annotated[Path, typer.Argument(help="soul.pt of one of the original's checkpoints")],
    out: Annotated[Path | None, typer.Option(help="output file (default: soul.safetensors beside soul.pt)")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert the original pipeline's soul.pt into a soul.safetensors for merge. No code in it is run."""
    from aegis.cli.screens import results

    refuse_absent(soul)
    output.say_that_it_loads()
    from aegis.stages.import_soul import import_soul as stage

    report = stage(soul, out or soul.with_suffix(".safetensors"), overwrite=overwrite)
    progress.result(results.imported(report), report)


@command(
    _STAGES,
    "aegis export-gguf --quant Q8_0",
    "aegis export-gguf --model FOLDER --out FOLDER --quant Q4_K_M,Q6_K",
    name="export-gguf",
    settings=("export",),
)
def export_gguf(
    flags: dict[str, Any],
    run: RunOption = None,
    model: Annotated[Path | None, typer.Option(help="merged folder, instead of --run")] = None,
    out: Annotated[Path | None, typer.Option(help="output folder (default: <run>/gguf)")] = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Convert the merged folder to GGUF and quantize it. --quant may be given several times; types are added."""
    from aegis.cli.screens import plan, results
    from aegis.cli.settings import export_settings

    settings = export_settings(preset, config, flags)
    run_dir = None
    if model and out and not run:
        source, place = model, out
    elif model:
        raise UsageError("cli.which_to_export")
    else:
        run_dir = existing_run(run)
        source, place = run_dir.merged, out or run_dir.gguf
    with lock_unless_dry_run(run_dir, dry_run):
        if run_dir is not None:
            run_dir.require_finished("merge")
        output.say_that_it_loads()
        from aegis.stages.export import export_gguf as stage

        announce_overwrite(place, overwrite=overwrite and not dry_run)
        report = stage(source, place, settings, overwrite=overwrite, dry_run=dry_run)
    progress.result(plan.export_planned(report) if dry_run else results.exported(report), report)
