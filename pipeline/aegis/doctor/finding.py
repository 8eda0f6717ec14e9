"""What a probe found out, and the commands that several probes name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


def set_up_again() -> str:
    """The command that brings a checkout's own environment to what it should be."""
    return r"py tools\start.py setup" if WINDOWS else "python3 tools/start.py setup"


def pip(*words: str) -> str:
    """A pip command for the Python that runs this."""
    python = f'"{sys.executable}"' if " " in sys.executable else sys.executable
    return " ".join([python, "-m", "pip", *words])


def pip_install(*arguments: str) -> str:
    """A pip command for the Python that runs this, held to the versions of the checkout."""
    constraints = CHECKOUT / "tools" / "constraints.txt"
    held = ["-c", str(constraints)] if constraints.is_file() else []
    words = [f'"{word}"' if any(c in word for c in ' <>"') else word for word in (*held, *arguments)]
    return pip("install", *words)


def environment_command(name: str, value: str) -> str:
    """The line that sets a variable in this system's usual shell."""
    return f'setx {name} "{value}"' if WINDOWS else f"export {name}={value}"


def gigabytes(count: float) -> str:
    """A size for people, in powers of 1000."""
    return f"{count / 1e9:.1f} GB"
