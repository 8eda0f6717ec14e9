"""The commands from a trained run to its files: merge, export-gguf, import-soul."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import DryRunOption, FileOption, OverwriteOption, PresetOption, RunOption
from aegis.cli.paths import announce_overwrite, existing_run, lock_unless_dry_run, refuse_no_file
from aegis.cli.registry import command
from aegis.errors import UsageError

_STAGES = "A run, stage by stage"


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
    from aegis.cli.checked_settings import export_settings
    from aegis.cli.screens import plan, results

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


@command("More", "aegis import-soul soul.pt", name="import-soul")
def import_soul(
    soul: Annotated[Path, typer.Argument(help="soul.pt of one of the original's checkpoints")],
    out: Annotated[Path | None, typer.Option(help="output file (default: soul.safetensors beside soul.pt)")] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert the original pipeline's soul.pt into a soul.safetensors for merge. No code in it is run."""
    from aegis.cli.screens import results

    refuse_no_file(soul)
    output.say_that_it_loads()
    from aegis.stages.import_soul import import_soul as stage

    report = stage(soul, out or soul.with_suffix(".safetensors"), overwrite=overwrite)
    progress.result(results.imported(report), report)
