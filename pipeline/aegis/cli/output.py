"""Sets how a command reports: for people, only results and warnings, or JSON lines; and whether it prints tracebacks.

The options may be before or after the command, so each takes effect when it is read.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from aegis import progress
from aegis.cli import exit

if TYPE_CHECKING:
    from aegis.cli.console.reporters import ConsoleReporter, JsonReporter

_chosen: set[str] = set()
_installed: ConsoleReporter | JsonReporter | None = None


def begin() -> None:
    """Report for people until another form is chosen."""
    _chosen.clear()
    exit.show_tracebacks(False)
    _install()


def choose(name: str) -> None:
    """Choose "quiet", "json" or "debug", in addition to earlier choices."""
    _chosen.add(name)
    if name == "debug":
        exit.show_tracebacks(True)
        return
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # otherwise the Hub client shows its own bars
    _install()


def say_that_it_loads() -> None:
    """Print that the command is loading, before libraries that take seconds to load."""
    from aegis.messages import phrase

    if "json" not in _chosen:
        progress.say(phrase("cli.loading"))


def log(text: str) -> None:
    """Print a line of a server's log on stderr, unless --quiet: a program that reads --json may read only results."""
    if "json" not in _chosen:
        progress.say(text)
    elif "quiet" not in _chosen:
        from aegis.cli.console.reporters import ConsoleReporter

        ConsoleReporter().say(text)


def signs_of_life() -> AbstractContextManager[None]:
    """Show that the command is at work whenever it was silent for seconds, while the block runs."""
    from aegis.cli.console.heartbeat import Heartbeat

    return Heartbeat(_installed.heard, _installed.show_life) if _installed else nullcontext()


def _install() -> None:
    global _installed
    from aegis.cli.console.reporters import ConsoleReporter, JsonReporter

    _installed = JsonReporter() if "json" in _chosen else ConsoleReporter(quiet="quiet" in _chosen)
    progress.install(_installed)
