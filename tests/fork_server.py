"""A Python process that has loaded everything, and forks what it is asked for: one JSON line in, one JSON line out."""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)])
"""What `python -m tests.MODULE` needs to find this package and aegis."""


def load_everything() -> None:
    """Import what any command imports, and let no garbage collection look at it: it would copy the pages in a child."""
    import bitsandbytes  # noqa: F401
    import llama_cpp  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401
    import rich.progress  # noqa: F401
    import transformers.models.phi3.modeling_phi3
    import transformers.utils.chat_template_utils  # noqa: F401

    import aegis

    for module in pkgutil.walk_packages(aegis.__path__, "aegis."):
        if not module.name.endswith(("__main__", "_triton")):
            importlib.import_module(module.name)
    compute_on_one_thread()
    gc.freeze()


def compute_on_one_thread() -> None:
    """Let torch compute on one thread, in this process and in what it forks.

    The first call in a child makes the pool of threads anew, and two threads that both find the old one fail there
    (torch's pthreadpool-cpp.cc). So the child makes it before it has threads.
    """
    import torch

    torch.set_num_threads(1)
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


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
