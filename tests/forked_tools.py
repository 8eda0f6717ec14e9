"""Fixtures that let tests fork the processes that aegis starts; tests/llama_cpp has their real starts."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fork_server import PYTHONPATH, ROOT
from tests.tool_server import ForkedSubprocess, ForkedTool, ToolServer


class SpawnedToolServer(ToolServer):
    """A tool server that is started when the first tool is."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._starting = threading.Lock()

    def start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        # a command starts tools from several threads
        with self._starting:
            if self._process is None:
                self._process = self._spawn()
        super().start(request, descriptors)

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.tool_server", str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUTF8": "1"},
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
            )

    def close(self) -> None:
        if self._process is not None:
            self._socket.close()
            self._process.wait(30)


@pytest.fixture(scope="session")
def tool_server() -> Iterator[ToolServer]:
    server = SpawnedToolServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def forked_tools(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let a module's tests, and the fixtures made after this one, fork the tools."""
    if sys.platform == "win32":
        yield
        return
    ForkedTool.server = request.getfixturevalue("tool_server")
    with pytest.MonkeyPatch.context() as patch:
        for replaced in ForkedSubprocess.replacing():
            patch.setattr(*replaced)
        yield
