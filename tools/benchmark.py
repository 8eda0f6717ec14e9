"""What the benchmarks share: their arguments, a place to work in, what they ran on, and rows in their own processes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aegis.runs.manifest import versions


def parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The arguments of a benchmark on a model of the real shape; `out` names the file its results go to."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "--template", type=Path, required=True, help="config.json and tokenizer files of a Phi-3.5-mini"
    )
    arguments.add_argument("--layers", type=int, help="a smaller model, for a trial")
    arguments.add_argument("--runs", type=int, default=3, help="rounds")
    arguments.add_argument("--work", type=Path, help="where to write; a temporary directory if not given")
    arguments.add_argument("--out", type=Path, default=Path(out), help="JSON file for the results")
    return arguments


def quiet_and_offline() -> None:
    """What the programs that are measured say and ask for, in this process and those it starts."""
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}


@contextmanager
def scratch(prefix: str, parent: Path | None) -> Iterator[Path]:
    """A new folder in `parent`, or in the system's place for such; it goes when the block ends."""
    if parent:
        parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measured_on() -> dict[str, object]:
    """The head of a results file: date, machine, versions."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
    }


def run_child(arguments: list[str], timeout: float, path: str = "") -> list[dict[str, Any]]:
    """Run a script of ours; every line of its output that is a JSON object is a row, and an error is one."""
    environment = dict(os.environ)
    if path:
        environment["PYTHONPATH"] = os.pathsep.join([environment.get("PYTHONPATH", ""), path])
    try:
        finished = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=timeout, env=environment
        )
        text, error = finished.stdout, finished.stderr
    except subprocess.TimeoutExpired as late:
        text, error = (late.stdout or b"").decode(), "it took too long"
    for line in text.splitlines():
        if line.startswith("  "):
            print(line, flush=True)
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    if not rows:
        print(error[-4000:], file=sys.stderr, flush=True)
    return rows or [{"error": (error.strip().splitlines() or ["no output"])[-1][:300]}]
