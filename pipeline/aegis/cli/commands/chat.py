"""The commands that run the model: chat, serve."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from aegis import progress
from aegis.cli.options import RunOption
from aegis.cli.registry import command
from aegis.cli.screens import results
from aegis.cli.shared import existing_run


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
    from aegis.chat.conversation import Conversation, SamplingParams
    from aegis.chat.load import load_models
    from aegis.cli.console.reporters import JsonReporter

    if json:
        progress.install(JsonReporter())
    run_dir = None if gguf and not run else existing_run(run)
    told = [{"role": "system", "content": system}] if system else []
    sampling = SamplingParams(max_tokens, temperature, seed)
    with load_models(run_dir, gguf, live=live, compare=compare == "base", context=context) as chat_models:
        conversations = [Conversation(chat_model, sampling, list(told)) for chat_model in chat_models]
        while text := prompt if prompt is not None else _ask():
            for conversation in conversations:
                progress.stream(conversation.chat_model.name, conversation.ask(text), alone=len(conversations) == 1)
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

    path = gguf or existing_run(run).first_gguf()
    length = context or trained_context(path)
    run_server(
        path,
        port=port,
        context=length,
        threads=threads,
        ready=lambda url: progress.result(results.serving(url, path, length), {"url": url, "model": path.stem}),
    )


def _ask() -> str | None:
    try:
        # what is not typed by a person needs no sign that it is awaited, and stdout may be read by a program
        return input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "").strip() or None
    except EOFError:
        return None
