"""The commands that measure a run: verify, quantize-study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import DryRunOption, FileOption, OverwriteOption, PresetOption, RunOption
from aegis.cli.paths import announce_overwrite, existing_run, lock_unless_dry_run, refuse_absent
from aegis.cli.registry import command
from aegis.errors import UsageError
from aegis.messages import layout


@command(
    "A run, stage by stage",
    "aegis verify",
    "aegis verify artifacts/NAME/gguf/NAME-Q4_K_M.gguf",
    settings=("verify",),
)
def verify(
    flags: dict[str, Any],
    path: Annotated[
        Path | None, typer.Argument(help="checkpoint, adapter, soul, merged folder or GGUF to check alone")
    ] = None,
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Prove that the exported file is the trained model; if not, name the failed stage and exit 5."""
    from aegis.cli.checked_settings import verify_settings
    from aegis.cli.screens import plan
    from aegis.cli.screens import verify as verify_screen

    if path is not None:
        if run or preset or config or flags:
            raise UsageError("cli.part_or_run")
        refuse_absent(path)
        output.say_that_it_loads()
        from aegis.stages.verify_file import verify_file

        found = verify_file(path)
        progress.result(verify_screen.examined(found), found.as_json())
        if found.failed_stage:
            raise typer.Exit(5)
        return
    settings = verify_settings(preset, config, flags)
    run_dir = existing_run(run)
    run_dir.require_finished()
    output.say_that_it_loads()
    if dry_run:
        from aegis.stages.plan_verify import plan_verify

        outlook = plan_verify(run_dir, settings)
        progress.result(plan.verify_planned(outlook), outlook)
        return
    from aegis.stages.verify import verify as stage

    with run_dir.lock(), output.signs_of_life():
        verdict = stage(run_dir, settings)
    progress.result(verify_screen.verified(verdict, run_dir.verify, layout.terminal_columns()), verdict.as_json())
    if verdict.failed_stage:
        raise typer.Exit(5)


@command(
    "Results",
    "aegis quantize-study --quant Q4_K_M,Q5_K_M,Q6_K",
    name="quantize-study",
    settings=("study",),
)
def quantize_study(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure what each quantization costs on your own text, and recommend one. --quant accepts a list."""
    from aegis.cli.checked_settings import study_settings
    from aegis.cli.screens import study

    settings = study_settings(preset, config, flags)
    run_dir = existing_run(run)
    run_dir.require_finished()
    output.say_that_it_loads()
    from aegis.stages.quantize_study import quantize_study as stage

    with lock_unless_dry_run(run_dir, dry_run):
        announce_overwrite(run_dir.study, overwrite=overwrite and not dry_run)
        report = stage(run_dir, settings, overwrite=overwrite, dry_run=dry_run)
    if report.study is None:
        progress.result(study.planned(report), report)
        return
    progress.result(
        study.studied(report, report.study, run_dir.root, layout.terminal_columns()), report.study.as_json()
    )
