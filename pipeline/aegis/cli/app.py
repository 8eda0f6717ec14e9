"""The door. A command builds a config, calls a stage, prints what came out; nothing here loads torch."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from aegis import __version__, progress
from aegis.cli import exit, logfile, parser, streams
from aegis.cli.commands import setup
from aegis.cli.screens import plan, results, study, verify
from aegis.config.settings import DEMO, ExportConfig, MergeConfig, StudyConfig, TrainConfig, VerifyConfig, resolve
from aegis.errors import UsageError
from aegis.cli.options import DryRunOption, FileOption, OverwriteOption, PresetOption, RunOption, with_settings

if TYPE_CHECKING:
    from aegis.runs.run import Run

app = typer.Typer(
    name="aegis",
    cls=parser.Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a LoRA adapter and a soul on a language model, merge and fold both, and get a GGUF for llama.cpp.",
)
command = partial(app.command, cls=parser.Command)

command()(setup.doctor)
command()(setup.init)
command()(with_settings(TrainConfig, MergeConfig, ExportConfig, VerifyConfig)(setup.plan))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version and stop", is_eager=True, callback=_show_version)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="only warnings and results")] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, warnings on stderr")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of whatever ends the command")] = False,
) -> None:
    """Settings that hold for every command."""
    from aegis.cli.console.reporters import ConsoleReporter

    exit.show_tracebacks(debug)
    logfile.begin(sys.argv[1:])

    if json:
        _speak_json()
        return
    if quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the Hub's own bars show downloads otherwise
    progress.install(ConsoleReporter(quiet=quiet))


@command()
@with_settings(TrainConfig)
def train(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="there must be a checkpoint to go on from")] = False,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="ten real steps for memory and speed; keeps nothing")
    ] = False,
) -> None:
    """Train an adapter and a soul. Without arguments: the embedded default, on a CPU, in a minute or two."""
    settings = setup.train_settings(preset, config, flags)
    from aegis.run_all import default_run
    from aegis.runs.run import Run
    from aegis.stages import train as stage

    if resume and run and not (flags or preset or config):
        settings = stage.config_of(Run(run))
    if dry_run:
        report = stage.dry_run(settings)
        progress.result(results.dry_run(report, settings), report)
        return
    place = Run(run) if run else default_run(settings.base_model)
    report = stage.train(settings, place, resume=resume, overwrite=overwrite)
    progress.result(results.trained(report, place.root), report)


@command()
@with_settings(MergeConfig)
def merge(
    flags: dict[str, Any],
    run: RunOption = None,
    base_model: Annotated[str | None, typer.Option(help="base, when there is no --run")] = None,
    revision: Annotated[str | None, typer.Option(help="its Hub revision")] = None,
    adapter: Annotated[Path | None, typer.Option(help="folder of the adapter, when there is no --run")] = None,
    soul: Annotated[
        Path | None, typer.Option(help="soul.safetensors; the one in the adapter's folder if not given")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; <run>/merged if not given")] = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Merge the adapter into the base's 16-bit weights and fold the soul into the LM head."""
    settings = resolve(MergeConfig, preset=preset, file=config, flags=flags)
    from aegis.runs.run import Run
    from aegis.stages import merge as stage

    place = None
    if adapter or base_model:
        if run or not (adapter and base_model and out):
            raise UsageError("cli.which_to_merge")
        inputs = stage.MergeInputs(base_model, adapter, soul, revision)
        report = stage.merge(inputs, out, settings, overwrite=overwrite, dry_run=dry_run)
    else:
        if soul or revision:
            raise UsageError("cli.soul_without_base")
        place = Run(_existing_run(run))
        with _held(place, dry_run):
            inputs = stage.inputs_of_run(place)
            report = stage.merge(inputs, out or place.merged, settings, overwrite=overwrite, dry_run=dry_run)
    if dry_run:
        progress.result(plan.merge_planned(report), report)
        return
    progress.result(results.merged(report, place.root if place else None), report)


@command("import-soul")
def import_soul(
    soul: Annotated[Path, typer.Argument(help="soul.pt of one of the original's checkpoints")],
    out: Annotated[Path, typer.Option(help="soul.safetensors to write")],
    overwrite: OverwriteOption = False,
) -> None:
    """Turn the original pipeline's soul.pt into a soul.safetensors that merge takes; nothing in it is run."""
    from aegis.stages.import_soul import import_soul as stage

    report = stage(soul, out, overwrite=overwrite)
    progress.result(results.imported(report), report)


@command("export-gguf")
@with_settings(ExportConfig)
def export_gguf(
    flags: dict[str, Any],
    run: RunOption = None,
    model: Annotated[Path | None, typer.Option(help="a merged folder, when there is no --run")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; <run>/gguf if not given")] = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Convert the merged folder to GGUF and quantize it. --quant may be given several times."""
    settings = resolve(ExportConfig, preset=preset, file=config, flags=flags)
    from aegis.runs.run import Run
    from aegis.stages.export import export_gguf as stage

    if model:
        if run or not out:
            raise UsageError("cli.which_to_export")
        report = stage(model, out, settings, overwrite=overwrite, dry_run=dry_run)
    else:
        place = Run(_existing_run(run))
        with _held(place, dry_run):
            report = stage(place.merged, out or place.gguf, settings, overwrite=overwrite, dry_run=dry_run)
    progress.result(plan.export_planned(report) if dry_run else results.exported(report), report)


@command()
@with_settings(TrainConfig, MergeConfig, ExportConfig, VerifyConfig)
def run(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """All stages in order, taking up where an earlier run stopped; ends with the proof."""
    chosen = setup.all_settings(preset, config, flags)
    if dry_run:
        setup.show_plan(chosen, run)
        return
    from aegis import reporting, run_all
    from aegis.runs.run import Run
    from aegis.chat.ask import Limits

    place = Run(run) if run else run_all.default_run(chosen.train.base_model)
    exported, verdict = run_all.run_all(
        chosen.train, chosen.merge, chosen.export, chosen.verify, place, overwrite=overwrite
    )
    progress.result(verify.verified(verdict, place.verify), verdict.as_json())
    if chosen.train.base_model == DEMO and chosen.train.dataset == DEMO:
        answers = run_all.before_and_after(exported.files[0])
        progress.result(results.before_and_after(answers), answers)
    with place.lock():
        page = reporting.report(place, Limits(), reuse=not overwrite)
    progress.result(f"{page}\n", {"report": page})
    progress.result(results.exported(exported), exported)


@command()
@with_settings(VerifyConfig)
def verify(
    flags: dict[str, Any],
    path: Annotated[
        Path | None, typer.Argument(help="a checkpoint, adapter, soul, merged folder or GGUF to be checked by itself")
    ] = None,
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    json: Annotated[bool, typer.Option("--json", help="the report as a JSON line on stdout")] = False,
    dry_run: DryRunOption = False,
) -> None:
    """Prove that what was trained is what runs; exit 5, and the guilty stage, if it is not."""
    if json:
        _speak_json()
    if path is not None:
        if run or preset or config or flags:
            raise UsageError("cli.part_or_run")
        from aegis.stages.verify_file import examine

        found = examine(path)
        progress.result(verify.examined(found), found.as_json())
        if found.guilty:
            raise typer.Exit(5)
        return
    settings = resolve(VerifyConfig, preset=preset, file=config, flags=flags)
    from aegis.runs.run import Run

    place = Run(_existing_run(run))
    if dry_run:
        from aegis.stages.plan import plan_verify

        outlook = plan_verify(place, settings)
        progress.result(plan.verify_planned(outlook), outlook)
        return
    from aegis.stages.verify import verify as stage

    with place.lock():
        verdict = stage(place, settings)
    progress.result(verify.verified(verdict, place.verify), verdict.as_json())
    if verdict.guilty:
        raise typer.Exit(5)


@command("quantize-study")
@with_settings(StudyConfig)
def quantize_study(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Measure what each quantization costs on your own text, and recommend one. --quant takes a list."""
    settings = resolve(StudyConfig, preset=preset, file=config, flags=flags)
    from aegis.runs.run import Run
    from aegis.stages.quantize_study import quantize_study as stage

    place = Run(_existing_run(run))
    with _held(place, dry_run):
        report = stage(place, settings, overwrite=overwrite, dry_run=dry_run)
    if report.study is None:
        progress.result(study.planned(report), report)
        return
    progress.result(study.studied(report, report.study, place.root), report.study.as_json())


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
    from aegis import reporting
    from aegis.runs.run import Run
    from aegis.chat.ask import Limits

    place = Run(_existing_run(run))
    with place.lock():
        page = reporting.report(place, Limits(samples, max_tokens, seconds), prompt or ())
    progress.result(str(page), {"report": page})


PartOption = Annotated[Literal["gguf", "merged"], typer.Option("--part", help="the GGUF files or the merged folder")]


@command()
def card(run: RunOption = None, part: PartOption = "gguf") -> None:
    """Print a model card, with what verify found in it."""
    from aegis.runs.run import Run
    from aegis.stages.push import card as stage

    text = stage(Run(_existing_run(run)), part)
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
    from aegis.runs.run import Run
    from aegis.stages.push import push as stage

    place = Run(_existing_run(run))
    with place.lock():
        report = stage(place, repo, part, public=public, unverified=unverified)
    progress.result(results.pushed(report), report)


@command()
def chat(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="a GGUF file, when there is no --run")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="the model as it was trained (base, adapter, soul) instead of the GGUF")
    ] = False,
    compare: Annotated[
        Literal["base"] | None, typer.Option("--compare", help="ask the base the same, and show both answers")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="ask once and stop")] = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="the longest answer")] = 256,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token every time")] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="the same seed, the same answers")] = 0,
    context: Annotated[
        int | None, typer.Option(min=8, help="tokens of context; what the model is good for if not given")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="as aegis --json: JSON lines on stdout")] = False,
) -> None:
    """Talk to the GGUF in llama.cpp through its own chat template, or to the live model. An empty line ends it."""
    from aegis.chat import conversation as talk
    from aegis.cli.console.reporters import JsonReporter
    from aegis.runs.run import Run

    if json:
        progress.install(JsonReporter())
    place = None if gguf and not run else Run(_existing_run(run))
    told = [{"role": "system", "content": system}] if system else []
    manner = talk.Manner(max_tokens, temperature, seed)
    with talk.speakers(place, gguf, live=live, compare=compare == "base", context=context) as speakers:
        conversations = [talk.Conversation(speaker, manner, list(told)) for speaker in speakers]
        while text := prompt if prompt is not None else _ask():
            for conversation in conversations:
                progress.stream(conversation.speaker.name, conversation.ask(text), alone=len(conversations) == 1)
            if prompt is not None:
                return


@command()
def serve(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="a GGUF file, when there is no --run")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="of 127.0.0.1; 0 takes a free one")] = 8080,
    context: Annotated[
        int | None, typer.Option(min=8, help="tokens of context; what the model is good for if not given")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="threads; the physical cores if not given")] = None,
) -> None:
    """Serve the GGUF over OpenAI's protocol, on this machine only, until Ctrl-C."""
    from aegis.llama_cpp import serve as run_server
    from aegis.llama_cpp import trained_context
    from aegis.runs.run import Run, gguf_of_run

    path = gguf or gguf_of_run(Run(_existing_run(run)))
    length = context or trained_context(path)
    run_server(
        path,
        port=port,
        context=length,
        threads=threads,
        ready=lambda url: progress.result(results.serving(url, path, length), {"url": url, "model": path.stem}),
    )


def main() -> None:
    """Run a command."""
    streams.prepare()
    # the libraries' advice to programmers is not for those who run a command
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    exit.to_its_end(_command)


def _command() -> int | None:
    _refuse_undecodable(sys.argv[1:])
    code: int | None = app(sys.argv[1:] or ["--help"], prog_name="aegis", standalone_mode=False)
    return code


def _speak_json() -> None:
    from aegis.cli.console.reporters import JsonReporter

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    progress.install(JsonReporter())


def _refuse_undecodable(arguments: list[str]) -> None:
    # the libraries that read and write weights take no such path, nor does a manifest
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError("cli.not_utf8", argument=argument) from None


def _held(place: Run, dry_run: bool) -> AbstractContextManager[None]:
    return nullcontext() if dry_run else place.lock()


def _existing_run(run: Path | None) -> Path:
    path = run or Path("artifacts") / DEMO
    if not path.is_dir():
        raise UsageError("cli.no_run", path=path)
    return path


def _ask() -> str | None:
    try:
        # what is not typed by a person needs no sign that it is awaited, and stdout may be read by a program
        return input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "").strip() or None
    except EOFError:
        return None
