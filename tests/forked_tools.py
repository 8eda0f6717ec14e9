"""Fixtures that let tests fork llama.cpp's converter and quantizer; tests/llama_cpp has their real starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from aegis.llama_cpp import process
from tests.fork_server import PYTHONPATH, ROOT
from tests.tool_server import ForkedSubprocess, ForkedTool, ToolServer


@pytest.fixture(scope="session")
def tool_server() -> Iterator[ToolServer]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.tool_server", str(theirs.fileno())],
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
            cwd=ROOT,
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        yield ToolServer(ours)
    server.wait(30)


@pytest.fixture(scope="module")
def forked_tools(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a module's tests, and the fixtures made after this one, fork the tools."""
    if sys.platform == "win32":
        yield
        return
    ForkedTool.server = request.getfixturevalue("tool_server")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "subprocess", ForkedSubprocess)
        yield
