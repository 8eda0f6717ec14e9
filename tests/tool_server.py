"""The processes that a command starts, forked from one that has loaded what they import.

These are llama.cpp's converter and quantizer, and the confined processes: most of their time on small inputs is their
start. `python -m tests.tool_server FD` reads what to start from a socket.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
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
        """Start a tool with its standard input, output and error, and the pipe for its pid and exit code."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)

    @staticmethod
    def serve(requests: socket.socket) -> None:
        """Fork what is asked for until the other end is closed."""
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            text, descriptors, _, _ = socket.recv_fds(requests, 1 << 18, 4)
            if not text:
                return
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                requests.close()
                os._exit(_tool_and_its_code(json.loads(text), *descriptors))
            for descriptor in descriptors:
                os.close(descriptor)


def _tool_and_its_code(request: dict[str, Any], to_read: int, out_write: int, err_write: int, report: int) -> int:
    """Fork a tool, wait for its end, and write its pid and its exit code into the pipe."""
    tool = os.fork()
    if tool == 0:
        os.setsid()
        for number, descriptor in enumerate((to_read, out_write, err_write)):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(report)
        code = _run_tool(request["command"], request["folder"], request["environment"])
        if any("imatrix" in word for word in request["command"]):
            ctypes.CDLL(None).exit(code)  # llama.cpp's logger, a thread, writes its last lines when its library ends
        os._exit(code)
    for descriptor in (to_read, out_write, err_write):
        os.close(descriptor)
    while os.getpgid(tool) != tool:  # who knows its pid may kill its group
        time.sleep(0.001)
    os.write(report, struct.pack("<i", tool))
    with contextlib.suppress(BrokenPipeError):
        os.write(report, struct.pack("<i", os.waitstatus_to_exitcode(os.waitpid(tool, 0)[1])))
    return 0


class ForkedTool:
    """The part of `subprocess.Popen` that `aegis.llama_cpp` uses, without a new interpreter."""

    server: ToolServer

    def __init__(
        self, command: list[str], *, env: dict[str, str], cwd: Path | None = None, stderr: int, **_: Any
    ) -> None:
        to_read, to_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe() if stderr == ForkedSubprocess.PIPE else (-1, os.dup(out_write))
        self._report, report = os.pipe()
        # not at the tool's end: another thread may still look at it
        weakref.finalize(self, os.close, self._report)
        self._code: int | None = None
        self._waiting = threading.Lock()  # two threads may wait for it, as for a Popen
        request = {"command": command, "folder": str(cwd or Path.cwd()), "environment": env}
        theirs = [to_read, out_write, err_write, report]
        self.server.start(request, theirs)
        for descriptor in theirs:
            os.close(descriptor)
        (self.pid,) = struct.unpack("<i", os.read(self._report, 4))
        self.stdin = os.fdopen(to_write, "wb")
        self.stdout = os.fdopen(out_read, "rb")
        self.stderr = os.fdopen(err_read, "rb") if err_read >= 0 else None

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        # without the lock: a thread that waits for the end is not to keep one that only asks
        if self._code is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("tool", timeout or 0)
        with self._waiting:
            if self._code is None:
                (self._code,) = struct.unpack("<i", os.read(self._report, 4))
            return self._code


class ForkedSubprocess:
    """Replaces the `subprocess` that the seam imports."""

    PIPE, STDOUT = -1, -2
    Popen = ForkedTool

    from subprocess import TimeoutExpired

    @classmethod
    def replacing(cls) -> Iterator[tuple[Any, str, type[ForkedSubprocess]]]:
        """Yield what to set: the module, the name there, and this class."""
        from aegis.llama_cpp import process
        from aegis.llama_cpp.confined import running

        yield from ((module, "subprocess", cls) for module in (process, running))


def fork_tools() -> None:
    """Let this process, which has no threads yet, fork its tools from now on."""
    ForkedTool.server = ToolServer.forked()
    for replaced in ForkedSubprocess.replacing():
        setattr(*replaced)


def _run_tool(command: list[str], folder: str, env: dict[str, str]) -> int:
    from aegis.llama_cpp import _child
    from aegis.llama_cpp.confined import _worker

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    script, *arguments = command[3:]  # after python -P -B
    if script == _child.__file__:
        # the converter's tree brings a gguf of its own
        for name in [name for name in sys.modules if name == "gguf" or name.startswith("gguf.")]:
            del sys.modules[name]
    try:
        (_worker if script == _worker.__file__ else _child).main(*arguments)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main(descriptor: str) -> None:
    """Load what the tools import, then fork them."""
    import gc

    import sentencepiece  # noqa: F401
    from transformers import AutoConfig, AutoTokenizer  # noqa: F401

    from aegis.data import encoding_worker  # noqa: F401
    from aegis.llama_cpp import _loading_worker, _rendering_worker  # noqa: F401
    from tests.fork_server import compute_on_one_thread

    compute_on_one_thread()
    gc.freeze()  # a collection in a child would copy every page that it looks at
    ToolServer.serve(socket.socket(fileno=int(descriptor)))
    os._exit(0)  # an interpreter with all of this takes seconds to end


if __name__ == "__main__":
    main(*sys.argv[1:])
