"""The commands that share a run: report, card, push."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import DryRunOption, RunOption
from aegis.cli.paths import existing_run, lock_unless_dry_run
from aegis.cli.registry import command
from aegis.errors import UsageError
from aegis.hub.client import is_hub_id
from aegis.messages import phrase


@command("Results", "aegis report", 'aegis report -p "Who are you?" -p "What do dogs say?"')
def report(
    run: RunOption = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", "-p", help="question to ask; may be repeated")] = None,
    samples: Annotated[
        int, typer.Option(min=0, max=10_000, help="number of held-out questions to ask; 0 asks none")
    ] = 4,
    seconds: Annotated[
        float, typer.Option(min=0, max=1_000_000, help="time limit per model in seconds; a longer answer is cut off")
    ] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="maximum tokens per answer")] = 96,
) -> None:
    """Write one HTML page about a run: tables, pictures, answers before and after."""
    run_dir = existing_run(run)
    run_dir.require_training()  # before torch is loaded, as below
    output.say_that_it_loads()
    from aegis.chat.ask import Limits
    from aegis.stages.report import report as report_stage

    with run_dir.lock():
        page = report_stage(run_dir, Limits(samples, max_tokens, seconds), prompt or ())
    progress.result(str(page), {"report": page})


PartOption = Annotated[
    Literal["gguf", "merged"], typer.Option("--part", help="what to take: the GGUF files or the merged folder")
]


@command("Use and share the model", "aegis card --part merged")
def card(run: RunOption = None, part: PartOption = "gguf") -> None:
    """Print a model card with the results of verify."""
    run_dir = existing_run(run)
    run_dir.published(part)
    output.say_that_it_loads()
    from aegis.stages.push import card as stage

    text = stage(run_dir, part)
    progress.result(text.rstrip(), {"card": text})


@command("Use and share the model", "aegis push owner/name", "aegis push owner/name --part merged --public")
def push(
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="owner/name on the Hub; created if it does not exist")
    ],
    run: RunOption = None,
    part: PartOption = "gguf",
    public: Annotated[bool, typer.Option("--public", help="make the repository public (default: private)")] = False,
    unverified: Annotated[bool, typer.Option("--unverified", help="upload even if verify has not passed")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Upload the GGUF files or the merged folder to the Hub, with its model card. Does not ask."""
    from aegis.cli.screens import results

    if "/" not in repo:
        raise UsageError("push.no_owner", repo=repo)
    if not is_hub_id(repo):
        raise UsageError("push.not_a_name", repo=repo, reason=phrase("push.form"))
    run_dir = existing_run(run)
    run_dir.published(part)
    output.say_that_it_loads()
    from aegis.stages.push import push as stage

    with lock_unless_dry_run(run_dir, dry_run):
        report = stage(run_dir, repo, part, public=public, unverified=unverified, dry_run=dry_run)
    progress.result(results.would_be_pushed(report) if dry_run else results.pushed(report), report)
