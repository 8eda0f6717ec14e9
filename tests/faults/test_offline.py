"""Tests that no process of the pipeline opens a socket after the set-up, counted in libc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import harness
from tests.faults.harness import Laboratory
from vendor_llama_cpp import converter_tree

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD"),
    pytest.mark.timeout(600),
]


def run(folder: Path, *command: object, **environment: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run Python and count the sockets of it and of all processes it starts; HF_HUB_OFFLINE is not set."""
    shim = harness.build_shim(folder)
    state = harness.write_state(folder)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("AEGIS_", "HF_"))}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        env={
            **inherited,
            "LD_PRELOAD": str(shim),
            "CRASHPOINT_STATE": str(state),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT)]),
            "PYTHONUTF8": "1",
            "AEGIS_CACHE_DIR": str(folder / "cache"),
            "LLAMA_CPP_DIR": str(converter_tree()),
            **environment,
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=500,
        check=False,
    )
    return done, harness.sockets_opened(state)


def test_a_socket_is_noticed(tmp_path: Path) -> None:
    """The control, in a grandchild."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.socket()'])"
    assert run(tmp_path, "-c", code)[1] == 1


def test_the_pipeline_opens_no_socket(laboratory: Laboratory, tmp_path: Path) -> None:
    done, sockets = run(tmp_path, "-m", "aegis", *laboratory.arguments("run"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert sockets == 0
