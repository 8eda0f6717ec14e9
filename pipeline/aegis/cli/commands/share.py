"""The commands that show a run to others: report, card, push."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from aegis import progress
from aegis.cli.options import RunOption
from aegis.cli.registry import command
from aegis.cli.screens import results
from aegis.cli.shared import existing_run


@command()
def report(
    run: RunOption = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="ask this; may be given several times")
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="questions of held-out chats to ask; 0 asks nothing")] = 4,
    seconds: Annotated[float, typer.Option(min=0, help="for one model's answers; what runs over is cut")] = 60.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="the longest answer")] = 96,
) -> None:
    """Write one HTML page with everything known of a run: tables, pictures, answers before and after."""
    from aegis.chat.ask import Limits
    from aegis.stages.report import report as report_stage

    run_dir = existing_run(run)
    with run_dir.lock():
        page = report_stage(run_dir, Limits(samples, max_tokens, seconds), prompt or ())
    progress.result(str(page), {"report": page})


PartOption = Annotated[Literal["gguf", "merged"], typer.Option("--part", help="the GGUF files or the merged folder")]


@command()
def card(run: RunOption = None, part: PartOption = "gguf") -> None:
    """Print a model card, with what verify found in it."""
    from aegis.stages.push import card as stage

    text = stage(existing_run(run), part)
    progress.result(text.rstrip(), {"card": text})


@command()
def push(
    repo: Annotated[str, typer.Argument(help="owner/name on the Hub; made if it is not there")],
    run: RunOption = None,
    part: PartOption = "gguf",
    public: Annotated[bool, typer.Option("--public", help="for all to see; private if not given")] = False,
    unverified: Annotated[bool, typer.Option("--unverified", help="even if verify has not passed")] = False,
) -> None:
    """Upload the GGUF files or the merged folder to the Hub, with its model card. Asks nothing."""
    from aegis.stages.push import push as stage

    run_dir = existing_run(run)
    with run_dir.lock():
        report = stage(run_dir, repo, part, public=public, unverified=unverified)
    progress.result(results.pushed(report), report)
