"""The Typer application, and the decorator that adds a command to it."""

from __future__ import annotations

from functools import partial

import typer

from aegis.cli import parser

app = typer.Typer(
    name="aegis",
    cls=parser.Commands,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train a LoRA adapter and a soul on a language model, merge and fold both, and get a GGUF for llama.cpp.",
)
command = partial(app.command, cls=parser.Command)
