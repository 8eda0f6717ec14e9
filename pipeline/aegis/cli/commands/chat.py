"""The commands that run the model: chat, serve, ollama."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import RunOption
from aegis.cli.paths import existing_run, refuse_absent, refuse_no_file
from aegis.cli.registry import command
from aegis.messages import phrase

if TYPE_CHECKING:
    from aegis.runs.run import Run

ContextOption = Annotated[
    int | None, typer.Option(min=8, max=1 << 20, help="context length in tokens (default: the model's own)")
]


@command(
    "Use and share the model",
    "aegis chat",
    'aegis chat --compare base -p "What do dogs say?"',
)
def chat(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="GGUF file, instead of --run")] = None,
    live: Annotated[
        bool, typer.Option("--live", help="the model as it was trained (base, adapter, soul) instead of the GGUF")
    ] = False,
    compare: Annotated[
        Literal["base"] | None, typer.Option("--compare", help="ask the base too, and show both answers")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", "-p", help="ask one question and stop")] = None,
    system: Annotated[str | None, typer.Option(help="system message")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1 << 20, help="maximum tokens per answer")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, max=100, help="sampling temperature; 0 always takes the most likely token")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="random seed of the answers")] = 0,
    context: ContextOption = None,
) -> None:
    """Talk to the GGUF in llama.cpp through its own chat template, or to the live model. /? lists its commands."""
    from aegis.chat.conversation import Conversation, SamplingParams
    from aegis.chat.load import load_models
    from aegis.cli.dialogue import Dialogue

    refuse_no_file(gguf)
    run_dir = None if gguf and not run else existing_run(run)
    if run_dir is not None and not gguf:
        run_dir.require_finished("train" if live else "export-gguf")
    history = [{"role": "system", "content": system}] if system else []
    sampling = SamplingParams(max_tokens, temperature, seed)
    output.say_that_it_loads()
    with load_models(run_dir, gguf, live=live, compare=compare == "base", context=context) as chat_models:
        dialogue = Dialogue([Conversation(chat_model, sampling, list(history)) for chat_model in chat_models])
        if prompt is None:
            dialogue.run()
        else:
            dialogue.ask(prompt)


@command("Use and share the model", "aegis serve --port 8080", "aegis serve --beside base-Q4_K_M.gguf")
def serve(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="GGUF file, instead of --run")] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="second GGUF file, or a quantization of the run, whose answers the chat page shows beside the first"
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0 picks a free port")] = 8080,
    context: ContextOption = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=4096, help="number of threads (default: the physical cores)")
    ] = None,
) -> None:
    """Serve the GGUF with a chat page and over the OpenAI protocol, on this machine only, until Ctrl-C."""
    from aegis.chat.serving import names_of
    from aegis.chat.serving import serve as run_server
    from aegis.cli.screens import results
    from aegis.llama_cpp import trained_context

    refuse_no_file(gguf)
    run_dir = existing_run(run) if run or not gguf else None
    paths = [gguf or _exported(run_dir)]
    if beside is not None:
        paths.append(_beside(run_dir, beside))
    names = names_of(paths)
    length = context or min(map(trained_context, paths))

    def ready(url: str) -> None:
        report = {"page": url, "url": f"{url}/v1", "model": names[0], "models": names}
        progress.result(results.serving(url, names, length), report)

    run_server(*paths, port=port, context=length, threads=threads, ready=ready, log=output.log)


@command("Use and share the model", "aegis ollama", "aegis ollama --name samurai --create-only")
def ollama(
    run: RunOption = None,
    name: Annotated[
        str | None, typer.Option(help="name of the model in Ollama (default: the export's, in small letters)")
    ] = None,
    create_only: Annotated[bool, typer.Option("--create-only", help="create the model and stop")] = False,
) -> None:
    """Create the run's model in the Ollama of this machine, by the run's Modelfile, and talk to it there."""
    from aegis.llama_cpp.ollama.command import create_model, find_ollama, talk
    from aegis.report.card import ollama_name
    from aegis.runs.facts import ExportFacts

    run_dir = existing_run(run)
    run_dir.require_finished("export-gguf")
    called = name or ollama_name(ExportFacts.read(run_dir.gguf).name)
    program = find_ollama(run_dir.gguf, called)
    create_model(program, run_dir.gguf, called)
    if create_only:
        progress.result(phrase("ollama.created", name=called), {"name": called})
    else:
        talk(program, called)


def _exported(run: Run | None) -> Path:
    assert run is not None
    run.require_finished("export-gguf")
    return run.first_gguf()


def _beside(run: Run | None, name: str) -> Path:
    """Return the file of this name, or the run's file of this quantization."""
    from aegis.runs.disk import at_home
    from aegis.runs.facts import ExportFacts

    path = given = at_home(name)
    if run is not None and not path.exists() and run.gguf.is_dir():
        path = run.gguf / ExportFacts.read(run.gguf).files.get(name.upper(), name)
        path = path if path.exists() else given
    refuse_absent(path)
    return path
