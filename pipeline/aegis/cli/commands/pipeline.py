"""The commands of the pipeline: train, merge, import-soul, export-gguf, run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis import progress
from aegis.cli.commands import setup
from aegis.cli.options import DryRunOption, FileOption, OverwriteOption, PresetOption, RunOption, add_setting_options
from aegis.cli.registry import command
from aegis.cli.screens import plan, results
from aegis.cli.screens import verify as verify_screen
from aegis.cli.shared import announce_overwrite, existing_run, lock_unless_dry_run
from aegis.config.resolve import resolve
from aegis.config.settings import DEMO, ExportConfig, MergeConfig, TrainConfig, VerifyConfig
from aegis.errors import UsageError


@command()
@add_setting_options(TrainConfig)
def train(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="resume from the newest checkpoint; an error if there is none")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="take ten real steps to measure memory and speed; keep nothing")
    ] = False,
) -> None:
    """Train an adapter and a soul."""
    from aegis.runs.overwriting import places_of_training, refuse_finished
    from aegis.runs.run import Run

    if resume and run and not (flags or preset or config):
        settings, run_dir = None, Run(run)
    else:
        settings = setup.train_settings(preset, config, flags)
        run_dir = Run(run) if run else Run.named_after(settings.base_model)
    if not dry_run:
        announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
        refuse_finished(run_dir, overwrite=overwrite)
    from aegis.stages import train as stage
    from aegis.training.resume import resume_config

    settings = settings or resume_config(run_dir)
    if dry_run:
        report = stage.dry_run(settings)
        progress.result(results.dry_run(report, settings), report)
        return
    report = stage.train(settings, run_dir, resume=resume, overwrite=overwrite)
    progress.result(results.trained(report, run_dir.root), report)


@command()
@add_setting_options(MergeConfig)
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
    settings = resolve(MergeConfig, preset=preset, file=config, flags=flags)
    from aegis.stages import merge as stage

    run_dir = None
    if adapter or base_model:
        if run or not (adapter and base_model and out):
            raise UsageError("cli.which_to_merge")
        inputs = stage.MergeInputs(base_model, adapter, soul, revision)
        announce_overwrite(out, overwrite=overwrite and not dry_run)
        report = stage.merge(inputs, out, settings, overwrite=overwrite, dry_run=dry_run)
    else:
        if soul or revision:
            raise UsageError("cli.soul_without_base")
        run_dir = existing_run(run)
        with lock_unless_dry_run(run_dir, dry_run):
            inputs = stage.MergeInputs.from_run(run_dir)
            announce_overwrite(out or run_dir.merged, overwrite=overwrite and not dry_run)
            report = stage.merge(inputs, out or run_dir.merged, settings, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        progress.result(plan.merge_planned(report), report)
        return
    progress.result(results.merged(report, run_dir.root if run_dir else None), report)


@command("import-soul")
def import_soul(
    soul: Annotated[Path, typer.Argument(help="soul.pt of one of the original's checkpoints")],
    out: Annotated[Path, typer.Option(help="output file, soul.safetensors")],
    overwrite: OverwriteOption = False,
) -> None:
    """Convert the original pipeline's soul.pt into a soul.safetensors for merge. No code in it is run."""
    from aegis.stages.import_soul import import_soul as stage

    report = stage(soul, out, overwrite=overwrite)
    progress.result(results.imported(report), report)


@command("export-gguf")
@add_setting_options(ExportConfig)
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
    """Convert the merged folder to GGUF and quantize it. --quant may be given several times."""
    settings = resolve(ExportConfig, preset=preset, file=config, flags=flags)
    from aegis.stages.export import export_gguf as stage

    if model:
        if run or not out:
            raise UsageError("cli.which_to_export")
        announce_overwrite(out, overwrite=overwrite and not dry_run)
        report = stage(model, out, settings, overwrite=overwrite, dry_run=dry_run)
    else:
        run_dir = existing_run(run)
        with lock_unless_dry_run(run_dir, dry_run):
            announce_overwrite(out or run_dir.gguf, overwrite=overwrite and not dry_run)
            report = stage(run_dir.merged, out or run_dir.gguf, settings, overwrite=overwrite, dry_run=dry_run)
    progress.result(plan.export_planned(report) if dry_run else results.exported(report), report)


@command()
@add_setting_options(TrainConfig, MergeConfig, ExportConfig, VerifyConfig)
def run(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Run all stages in order, resume where an earlier run stopped, and verify the result."""
    chosen = setup.all_settings(preset, config, flags)
    if dry_run:
        setup.show_plan(chosen, run)
        return
    from aegis import run_all
    from aegis.chat.ask import Limits, ask
    from aegis.demo.corpus import demo_prompts
    from aegis.runs.overwriting import places_of_training
    from aegis.runs.run import Run
    from aegis.stages.report import report as report_stage

    run_dir = Run(run) if run else Run.named_after(chosen.train.base_model)
    announce_overwrite(*places_of_training(run_dir), overwrite=overwrite)
    exported, verdict = run_all.run_all(
        chosen.train, chosen.merge, chosen.export, chosen.verify, run_dir, overwrite=overwrite
    )
    progress.result(verify_screen.verified(verdict, run_dir.verify), verdict.as_json())
    if chosen.train.base_model == DEMO and chosen.train.dataset == DEMO:
        prompts = demo_prompts()
        answers = ask(run_dir, prompts, Limits(), models=("base", "gguf"))
        progress.result(results.before_and_after(prompts, answers), answers)
    with run_dir.lock():
        page = report_stage(run_dir, Limits(), reuse=not overwrite)
    progress.result(f"{page}\n", {"report": page})
    progress.result(results.exported(exported), exported)
