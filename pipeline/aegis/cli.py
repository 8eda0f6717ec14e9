"""The door. A command builds a config, calls a stage, prints what came out; nothing here loads torch."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from aegis import __version__, disk, progress, screens
from aegis.config import DEMO, Config, ExportConfig, MergeConfig, StageConfig, TrainConfig, VerifyConfig, resolve
from aegis.errors import AegisError, UsageError
from aegis.options import FileOption, OverwriteOption, PresetOption, RunOption, with_settings

app = typer.Typer(
    name="aegis",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a LoRA adapter and a soul on a language model, merge and fold both, and get a GGUF for llama.cpp.",
)


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
) -> None:
    """Settings that hold for every command."""
    from aegis.console import ConsoleReporter, JsonReporter

    if quiet or json:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # the Hub's own bars show downloads otherwise
    progress.install(JsonReporter() if json else ConsoleReporter(quiet=quiet))


@app.command()
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
    settings = _train_settings(preset, config, flags)
    from aegis.chain import default_run
    from aegis.runs import Run
    from aegis.stages import train as stage

    if resume and run and not (flags or preset or config):
        settings = stage.config_of(Run(run))
    if dry_run:
        report = stage.dry_run(settings)
        progress.result(screens.dry_run(report, settings), report)
        return
    place = Run(run) if run else default_run(settings.base_model)
    report = stage.train(settings, place, resume=resume, overwrite=overwrite)
    progress.result(screens.trained(report, place.root), report)


@app.command()
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
) -> None:
    """Merge the adapter into the base's 16-bit weights and fold the soul into the LM head."""
    settings = resolve(MergeConfig, preset=preset, file=config, flags=flags)
    from aegis.runs import Run
    from aegis.stages import merge as stage

    place = None
    if adapter or base_model:
        if run or not (adapter and base_model and out):
            raise UsageError(
                "which model is to be merged?", fix="give --run alone, or all of --base-model, --adapter and --out"
            )
        report = stage.merge(stage.MergeInputs(base_model, adapter, soul, revision), out, settings, overwrite=overwrite)
    else:
        if soul or revision:
            raise UsageError("--soul and --revision go with --base-model and --adapter", fix="a run knows its own")
        place = Run(_existing_run(run))
        with place.lock():
            report = stage.merge(stage.inputs_of_run(place), out or place.merged, settings, overwrite=overwrite)
    progress.result(screens.merged(report, place.root if place else None), report)


@app.command("export-gguf")
@with_settings(ExportConfig)
def export_gguf(
    flags: dict[str, Any],
    run: RunOption = None,
    model: Annotated[Path | None, typer.Option(help="a merged folder, when there is no --run")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; <run>/gguf if not given")] = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert the merged folder to GGUF and quantize it. --quant may be given several times."""
    settings = resolve(ExportConfig, preset=preset, file=config, flags=flags)
    from aegis.runs import Run
    from aegis.stages.export import export_gguf as stage

    if model:
        if run or not out:
            raise UsageError("which model is to be exported?", fix="give --run alone, or both --model and --out")
        report = stage(model, out, settings, overwrite=overwrite)
    else:
        place = Run(_existing_run(run))
        with place.lock():
            report = stage(place.merged, out or place.gguf, settings, overwrite=overwrite)
    progress.result(screens.exported(report), report)


@app.command()
@with_settings(TrainConfig, MergeConfig, ExportConfig, VerifyConfig)
def run(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """All stages in order, taking up where an earlier run stopped; ends with the proof."""
    train_settings = _train_settings(preset, config, _only(flags, TrainConfig))
    preset = _preset(preset, train_settings)

    def settings(model: type[Config]) -> Config:
        return resolve(model, preset=preset, file=config, flags=_only(flags, model))

    from aegis import chain
    from aegis.runs import Run

    place = Run(run) if run else chain.default_run(train_settings.base_model)
    exported, verdict = chain.run_all(
        train_settings,
        settings(MergeConfig),
        settings(ExportConfig),
        settings(VerifyConfig),
        place,
        overwrite=overwrite,
    )
    progress.result(screens.verified(verdict, place.verify), verdict)
    if train_settings.base_model == DEMO and train_settings.dataset == DEMO:
        answers = chain.before_and_after(exported.files[0])
        progress.result(screens.before_and_after(answers), answers)
    progress.result(screens.exported(exported), exported)


@app.command()
@with_settings(VerifyConfig)
def verify(
    flags: dict[str, Any],
    run: RunOption = None,
    preset: PresetOption = None,
    config: FileOption = None,
) -> None:
    """Prove that what was trained is what runs; exit 5, and the guilty stage, if it is not."""
    settings = resolve(VerifyConfig, preset=preset, file=config, flags=flags)
    from aegis.runs import Run
    from aegis.stages.verify import verify as stage

    place = Run(_existing_run(run))
    with place.lock():
        verdict = stage(place, settings)
    progress.result(screens.verified(verdict, place.verify), verdict)
    if verdict.guilty:
        raise typer.Exit(5)


@app.command()
def chat(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="a GGUF file, when there is no --run")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="ask once and stop")] = None,
    system: Annotated[str | None, typer.Option(help="a system message")] = None,
    max_tokens: Annotated[int, typer.Option(help="the longest answer")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token every time")] = 0.7,
    context: Annotated[
        int | None, typer.Option(help="tokens of context; what the model is good for if not given")
    ] = None,
) -> None:
    """Talk to the GGUF in llama.cpp through its own chat template."""
    from aegis.chain import gguf_of_run
    from aegis.llama_cpp import Runtime, trained_context
    from aegis.runs import Run

    path = gguf if gguf else gguf_of_run(Run(_existing_run(run)))
    history: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with Runtime(path, n_ctx=context or trained_context(path)) as runtime:
        while True:
            text = prompt if prompt is not None else _ask()
            if text is None:
                return
            history.append({"role": "user", "content": text})
            answer = ""
            for piece in runtime.chat(history, max_tokens, temperature):
                typer.echo(piece, nl=False)
                answer += piece
            typer.echo()
            if prompt is not None:
                return
            history.append({"role": "assistant", "content": answer})


def main() -> None:
    """Run a command; end with DESIGN's exit codes, a person's message, and a traceback only for our own bugs."""
    for stream in (sys.stdout, sys.stderr):
        # a cp932 console has no emoji; a question mark is better than a traceback
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    # the libraries' advice to programmers is not for those who run a command
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        _refuse_undecodable(sys.argv[1:])
        # a command's typer.Exit comes back as its number, and so does Ctrl-C
        code = app(sys.argv[1:] or ["--help"], prog_name="aegis", standalone_mode=False) or 0
        if code == 130:
            _complain("interrupted")
        sys.exit(code)
    except AegisError as error:
        _complain(error.what, error.why, error.fix)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        sys.exit(130)
    except SystemExit as leaving:
        # typer and rich end the process with 1 when whoever read our output has gone
        if not isinstance(leaving.__context__, BrokenPipeError):
            raise
        _silence()
        sys.exit(141)
    except BrokenPipeError:
        _silence()
        sys.exit(141)
    except OSError as error:
        if disk.is_full(error):
            fault = disk.full(Path(error.filename or "."), error)
            _complain(fault.what, fault.why, fault.fix)
            sys.exit(fault.exit_code)
        if error.filename is None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG):
            raise
        _complain(f"{error.filename} cannot be used", error.strerror or "")
        sys.exit(2)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors, which typer does not name
            _complain(error.format_message(), fix="aegis --help lists the commands, aegis COMMAND --help the options")
            sys.exit(2)
        raise


def _refuse_undecodable(arguments: list[str]) -> None:
    # the libraries that read and write weights take no such path, nor does a manifest
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument!r} is not UTF-8", fix="give the file or folder another name") from None


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """End as after Ctrl-C, so that what is half written is removed and llama.cpp's tools end as well."""
    _complain("terminated")
    sys.exit(143)


def _silence() -> None:
    """Nothing more may be written, not even at interpreter exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _train_settings(preset: str | None, config: Path | None, flags: dict[str, Any]) -> TrainConfig:
    settings = resolve(TrainConfig, preset=preset, file=config, flags=flags)
    chosen = _preset(preset, settings)
    return settings if chosen == preset else resolve(TrainConfig, preset=chosen, file=config, flags=flags)


def _preset(preset: str | None, settings: TrainConfig) -> str | None:
    # nothing said about the base: the embedded one, whose size has numbers of its own
    return DEMO if preset is None and settings.base_model == DEMO else preset


def _only(flags: dict[str, Any], model: type[StageConfig]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if name in model.model_fields}


def _existing_run(run: Path | None) -> Path:
    path = run or Path("artifacts") / DEMO
    if not path.is_dir():
        raise UsageError(f"there is no run at {path}", fix="give --run DIR, the directory `aegis train` wrote to")
    return path


def _ask() -> str | None:
    try:
        return input("> ").strip() or None
    except EOFError:
        return None


def _complain(what: str, why: str = "", fix: str = "") -> None:
    lines = [f"aegis: {what}"]
    for label, text in (("why", why), ("do", fix)):
        for line in text.splitlines():
            lines.append(f"  {label}: {line}")
            label = " " * len(label)
    try:
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
    except BrokenPipeError:
        _silence()
