"""Runs `aegis` as a command, forked from a process that has loaded everything (zygote.py)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fork_server import ForkServer


@dataclass(frozen=True)
class Ended:
    """A command's exit code (negative: the signal), its output, and its maximum resident memory."""

    code: int
    output: str
    peak_bytes: int


def strike(
    number: signal.Signals, *, rows: int | None = None, file: str | None = None, after_s: float = 0.0
) -> dict[str, Any]:
    """Return a signal to send when a number of steps is logged, when a file's name begins with `file`, or later."""
    if file is not None:
        return {"signal": int(number), "file": file}
    return {"signal": int(number), "after_s": after_s} if rows is None else {"signal": int(number), "rows": rows}


class Forked:
    """Runs commands one after the other; close it when done. They paint their pictures if `painted` is set."""

    def __init__(self, environment: Mapping[str, str] | None = None, *, painted: bool = False) -> None:
        from vendor_llama_cpp import converter_tree

        self._painted = painted
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AEGIS_", "HF_"))}
        own = {"LLAMA_CPP_DIR": str(converter_tree()), "PYTHONDONTWRITEBYTECODE": "1"}
        variables = {**inherited, **own, **(environment or {"HF_HUB_OFFLINE": "1"})}
        self._server = ForkServer("tests.faults.zygote", variables, stderr=subprocess.DEVNULL)

    def close(self) -> None:
        self._server.close()

    def aegis(
        self,
        folder: Path,
        *arguments: object,
        environment: Mapping[str, str] | None = None,
        powerless: bool = False,
        painted: bool = False,
        state: Path | None = None,
        blows: Sequence[dict[str, Any]] = (),
    ) -> Ended:
        """Run `aegis ARGUMENTS` in `folder`, and wait until every process that it started has ended."""
        # beside the folder: what is printed is not to fail when its disk plays full
        output = folder.with_name(f"{folder.name}.output.txt")
        asked = {
            "folder": str(folder),
            "arguments": [str(argument) for argument in arguments],
            "environment": dict(environment or {}),
            "output": str(output),
            "powerless": powerless,
            "painted": painted or self._painted,
            "state": str(state or ""),
            "blows": list(blows),
        }
        answer = self._server.ask(asked)
        assert answer["lingered_s"] < 10, f"a child went on for {answer['lingered_s']} s after its parent had ended"
        text = output.read_text(encoding="utf-8", errors="replace")
        return Ended(int(answer["code"]), text, int(answer["peak_bytes"]))
