"""llama.cpp's converter and quantizer, forked from a process that has loaded what they import.

Two thirds of a small conversion are its start. `python -m tests.tool_server FD` reads what to start from a socket.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


class ToolServer:
    """A process that forks the tools of a command.

    A command has threads, and a fork of theirs could wait for ever for a lock that another thread held. So this process
    is forked before there are any. It ends with the command, whose end of the socket is closed then.
    """

    def __init__(self, requests: socket.socket) -> None:
        self._socket = requests

    @classmethod
    def forked(cls) -> ToolServer:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            ours.close()
            cls.serve(theirs)
            os._exit(0)
        theirs.close()
        return cls(ours)

    def start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Start a tool with these as its standard input and output, and as the pipe for its pid and exit code."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)

    @staticmethod
    def serve(requests: socket.socket) -> None:
        """Fork what is asked for until the other end is closed."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            text, descriptors, _, _ = socket.recv_fds(requests, 1 << 18, 3)
            if not text:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                requests.close()
                os._exit(_tool_and_its_code(json.loads(text), *descriptors))
            for descriptor in descriptors:
                os.close(descriptor)


def _tool_and_its_code(request: dict[str, Any], to_read: int, out_write: int, report: int) -> int:
    """Fork a tool, wait for its end, and write its pid and its exit code into the pipe."""
    tool = os.fork()
    if tool == 0:
        os.setsid()
        os.dup2(to_read, 0)
        os.dup2(out_write, 1)
        os.dup2(out_write, 2)
        os.closerange(3, 64)
        os._exit(_run_tool(request["command"], Path(request["folder"]), request["environment"]))
    os.close(to_read)
    os.close(out_write)
    os.write(report, struct.pack("<i", tool))
    with contextlib.suppress(BrokenPipeError):
        os.write(report, struct.pack("<i", os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1])))
    return 0


class ForkedTool:
    """The part of `subprocess.Popen` that `aegis.llama_cpp.process` uses, without a new interpreter."""

    server: ToolServer

    def __init__(self, command: list[str], *, cwd: Path, env: dict[str, str], **_: Any) -> None:
        to_read, to_write = os.pipe()
        out_read, out_write = os.pipe()
        self._report, report = os.pipe()
        self._code: int | None = None
        request = {"command": command, "folder": str(cwd), "environment": env}
        self.server.start(request, [to_read, out_write, report])
        for descriptor in (to_read, out_write, report):
            os.close(descriptor)
        (self.pid,) = struct.unpack("<i", os.read(self._report, 4))
        self.stdin = os.fdopen(to_write, "wb")
        self.stdout = os.fdopen(out_read, "rb")

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        if self._code is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("tool", timeout or 0)
            (self._code,) = struct.unpack("<i", os.read(self._report, 4))
            os.close(self._report)
        return self._code


class ForkedSubprocess:
    """Replaces the `subprocess` that the seam imports."""

    PIPE, STDOUT = -1, -2
    Popen = ForkedTool

    from subprocess import TimeoutExpired


def _run_tool(command: list[str], cwd: Path, env: dict[str, str]) -> int:
    from aegis.llama_cpp import _child

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    # the converter's tree brings a gguf of its own
    for name in [name for name in sys.modules if name == "gguf" or name.startswith("gguf.")]:
        del sys.modules[name]
    try:
        _child.main(*command[command.index(str(_child.__file__)) + 1 :])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(descriptor: str) -> None:
    """Load what the tools import, then fork them."""
    import sentencepiece  # noqa: F401
    import torch
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    torch.set_num_threads(1)
    ToolServer.serve(socket.socket(fileno=int(descriptor)))
    os._exit(0)  # an interpreter with all of this takes seconds to end


if __name__ == "__main__":
    main(*sys.argv[1:])
