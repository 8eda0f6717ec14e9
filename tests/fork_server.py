"""A Python process that has loaded everything, and forks what it is asked for: one JSON line in, one JSON line out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])
"""What `python -m tests.MODULE` needs to find this package and aegis."""


class ForkServer:
    """Runs `python -m MODULE`, which prints "ready" once it has loaded everything; close it when done."""

    def __init__(self, module: str, environment: Mapping[str, str], *, stderr: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            env={**environment, "PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the process to fork from did not start"

    def ask(self, request: Any) -> Any:
        """Send a request, and wait for the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
