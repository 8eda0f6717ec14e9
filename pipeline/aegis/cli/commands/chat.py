"""The commands that run the model: chat, serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from aegis import progress
from aegis.cli import output
from aegis.cli.options import RunOption
from aegis.cli.registry import command
from aegis.cli.shared import existing_run, refuse_absent

if TYPE_CHECKING:
    from aegis.runs.run import Run


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
    max_tokens: Annotated[int, typer.Option(min=1, help="maximum tokens per answer")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0, help="sampling temperature; 0 always takes the most likely token")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the answers")] = 0,
    context: Annotated[
        int | None, typer.Option(min=8, help="context length in tokens (default: the model's own)")
    ] = None,
) -> None:
    """Talk to the GGUF in llama.cpp through its own chat template, or to the live model. /? lists its commands."""
    from aegis.chat.conversation import Conversation, SamplingParams
    from aegis.chat.load import load_models
    from aegis.cli.dialogue import Dialogue

    refuse_absent(gguf)
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


@command("Use and share the model", "aegis serve --port 8080")
def serve(
    run: RunOption = None,
    gguf: Annotated[Path | None, typer.Option(help="GGUF file, instead of --run")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="port on 127.0.0.1; 0 picks a free port")] = 8080,
    context: Annotated[
        int | None, typer.Option(min=8, help="context length in tokens (default: the model's own)")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="number of threads (default: the physical cores)")] = None,
) -> None:
    """Serve the GGUF over the OpenAI protocol, on this machine only, until Ctrl-C."""
    from aegis.cli.screens import results
    from aegis.llama_cpp import serve as run_server
    from aegis.llama_cpp import trained_context

    refuse_absent(gguf)
    path = gguf or _exported(existing_run(run))
    length = context or trained_context(path)
    run_server(
        path,
        port=port,
        context=length,
        threads=threads,
        ready=lambda url: progress.result(results.serving(url, path, length), {"url": url, "model": path.stem}),
    )


def _exported(run: Run) -> Path:
    run.require_finished("export-gguf")
    return run.first_gguf()
