"""Runs the `ollama` on PATH: creates a model from a Modelfile, and talks to it there."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from aegis.errors import EnvironmentFault, ToolError, UsageError
from aegis.signals import signal_handlers

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._/-]*[a-z0-9])?(?::[a-z0-9._-]+)?", re.IGNORECASE)


def find_ollama(folder: Path, name: str) -> str:
    """Return the path of the program.

    Raises:
        UsageError: Ollama takes no model of this name.
        EnvironmentFault: it is not on PATH; the message has the commands for the machine where it is.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("ollama.name", name=name)
    found = shutil.which("ollama")
    if found is None:
        raise EnvironmentFault("ollama.none", name=name, modelfile=folder / "Modelfile")
    return found


def create_model(ollama: str, folder: Path, name: str) -> None:
    """Create a model from the Modelfile in `folder`; Ollama shows its own progress.

    Raises:
        ToolError: Ollama refuses it, or its service does not run.
        KeyboardInterrupt: the user has stopped it with Ctrl-C.
    """
    # stdout is for the command's own result
    _run(ollama, "create", name, "-f", str((folder / "Modelfile").absolute()), stdout=sys.stderr.fileno())


def talk(ollama: str, name: str) -> None:
    """Let the user talk to a model in Ollama.

    Raises:
        ToolError: Ollama cannot run it.
        KeyboardInterrupt: the user has stopped it with Ctrl-C.
    """
    _run(ollama, "run", name)


def _run(ollama: str, word: str, name: str, *more: str, stdout: int | None = None) -> None:
    pressed: list[int] = []
    # Ctrl-C is for Ollama, which has the same terminal; a handler, because an ignored signal is inherited
    with signal_handlers([signal.SIGINT], lambda number, _: pressed.append(number)):
        code = subprocess.run([ollama, word, name, *more], stdout=stdout, check=False).returncode
    if code and pressed:
        raise KeyboardInterrupt
    if code:
        raise ToolError("ollama.failed", word=word, name=name, code=code)
