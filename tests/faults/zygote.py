"""A process that has loaded everything and forks a child for each command, which saves five seconds per command.

Reads one JSON object per line from stdin and runs `aegis ARGUMENTS` in a forked child:

    folder      its working directory, which gets a separate cache
    arguments   of the command line
    environment variables to set for it
    said        the file for its output
    powerless   whether it drops root's right to write where no permission allows it
    state       a state file for crashpoint.c, or null
    blows       signals to send: {"signal": 2, "after_s": 0.1}, or {"signal": 2, "rows": 3} once the run's
                metrics.jsonl has that number of rows

It waits until the child and every process that it started have ended, and answers with one JSON line,
{"code", "lingered_s", "peak_bytes"}.

The converter and the quantizer are forked too, and run their own scripts from the first line.
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
import time
import traceback
from pathlib import Path
from typing import Any

_PR_SET_CHILD_SUBREAPER = 36
_LINGERING_S = 20.0


class ToolServer:
    """A process that forks the tools of a command.

    A command has threads, and a fork of theirs could wait for ever for a lock that another thread held. So this process
    is forked before there are any. It ends with the command, whose end of the socket is closed then.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            self._socket.close()
            self._serve(theirs)
            os._exit(0)
        theirs.close()

    def start(self, request: dict[str, Any], descriptors: list[int]) -> None:
        """Start a tool with these as its standard input and output, and as the pipe for its pid and exit code."""
        socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)

    @staticmethod
    def _serve(requests: socket.socket) -> None:
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


def _run_command(folder: str, arguments: list[str], said: str) -> int:
    from aegis.cli import app
    from aegis.llama_cpp import process

    ForkedTool.server = ToolServer()

    class Popen:
        """Replaces the `subprocess` that the seam imports."""

        PIPE, STDOUT = -1, -2
        Popen = ForkedTool

        from subprocess import TimeoutExpired

    process.subprocess = Popen  # type: ignore[assignment]
    os.chdir(folder)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["aegis", *arguments]
    try:
        app.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _give_up_power(libc: Any) -> None:
    """Drop every capability, so that permissions hold for root too."""
    header = struct.pack("<Ii", 0x20080522, 0)
    assert libc.capset(header, bytes(24)) == 0


def _strike(child: int, folder: Path, blows: list[dict[str, Any]]) -> None:
    metrics = folder / "run" / "metrics.jsonl"
    for blow in blows:
        if "rows" in blow:
            while not metrics.exists() or metrics.read_bytes().count(b"\n") < blow["rows"]:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
                time.sleep(0.002)
        else:
            time.sleep(blow["after_s"])
        os.kill(child, blow["signal"])


def _wait_for_all(leader: int) -> dict[str, float]:
    """Return the leader's exit code and peak memory, and for how long its other processes went on after it."""
    _, status, usage = os.wait4(leader, 0)
    ended = time.monotonic()
    answer = {"code": os.waitstatus_to_exitcode(status), "lingered_s": 0.0, "peak_bytes": usage.ru_maxrss * 1024}
    while answer["lingered_s"] < _LINGERING_S:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if not pid:
            time.sleep(0.005)
        answer["lingered_s"] = time.monotonic() - ended
    return answer


def main() -> None:
    """Load everything, then serve requests."""
    shim = ctypes.CDLL(None)
    shim.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    import bitsandbytes  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import torch
    import transformers.models.phi3.modeling_phi3  # noqa: F401

    import aegis.run_all  # noqa: F401
    from aegis.cli import app  # noqa: F401

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["AEGIS_CACHE_DIR"] = asked["folder"] + "/cache"
            os.environ.update(asked["environment"])
            if asked["state"]:
                os.environ["CRASHPOINT_STATE"] = asked["state"]
                shim.crashpoint_use(asked["state"].encode())
            if asked["powerless"]:
                _give_up_power(shim)
            os._exit(_run_command(asked["folder"], asked["arguments"], asked["said"]))
        _strike(child, Path(asked["folder"]), asked["blows"])
        print(json.dumps(_wait_for_all(child)), flush=True)


if __name__ == "__main__":
    main()
