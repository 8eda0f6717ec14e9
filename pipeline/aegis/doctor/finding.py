"""The findings of probes, and text that several probes use."""

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
"""The checked thing; its text is the message `finding.NAME`."""

WINDOWS = os.name == "nt"
CHECKOUT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        name: what was checked.
        state: "ok"; "warn" if something could be better; "fail" if work will fail.
        detail: what was found, in one line.
        cure: the one command or step that mends it; "" if there is nothing to mend.
    """

    name: Name
    state: State
    detail: str
    cure: str = ""


def environment_command(name: str, value: str) -> str:
    """Return the command that sets an environment variable in this system's usual shell."""
    return f"setx {name} {shell_word(value)}" if WINDOWS else f"export {name}={shell_word(value)}"


def gigabytes(count: float) -> str:
    """Return a size in GB (powers of 1000) as text."""
    return f"{count / 1e9:.1f} GB"
