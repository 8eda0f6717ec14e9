"""What a probe found out, and what several probes write."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aegis.messages.safe import shell_word

State = Literal["ok", "warn", "fail"]
Name = Literal[
    "command_line",
    "console",
    "converter",
    "disk",
    "disk_base_models",
    "disk_cache",
    "disk_runs",
    "disk_temporary",
    "driver",
    "gpu",
    "hub",
    "kernel",
    "llama_cpp",
    "memory",
    "ollama",
    "packages",
    "paths",
    "python",
    "set_up",
    "torch",
    "triton",
]
"""What is looked at; its name for people is the text `finding.NAME`."""

WINDOWS = os.name == "nt"
CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was looked at.
        state: "ok"; "warn" where something is less than it could be; "fail" where work will not go through.
        detail: what is there, in one line.
        cure: the one command, or the one step, that mends it; empty when there is nothing to mend.
    """

    name: Name
    state: State
    detail: str
    cure: str = ""


def environment_command(name: str, value: str) -> str:
    """The line that sets a variable in this system's usual shell."""
    return f"setx {name} {shell_word(value)}" if WINDOWS else f"export {name}={shell_word(value)}"


def gigabytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    return f"{count / 1e9:.1f} GB"
