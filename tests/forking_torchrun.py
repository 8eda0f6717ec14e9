"""The launchers of torch and accelerate, forked from a process that has loaded everything: ten seconds less a process.

`python -m tests.forking_torchrun` reads one JSON list per line from stdin, and runs every launch in it at once:

    arguments    "torchrun" or "accelerate", and the rest of the command line
    environment  its variables
    out, err     the files for its output

It answers with one JSON line, the list of their exit codes. All of the launcher runs, but that it forks its workers
too, and they what they start. accelerate's starts them with torchrun's code.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fork_server import PYTHONPATH, ForkServer, load_everything
from tests.tool_server import fork_tools

TIME_OUT_S = 400


@dataclass(frozen=True)
class Ended:
    """A launcher's exit code and its output, with that of its workers."""

    code: int
    out: str
    err: str


class ForkingTorchrun:
    """Runs launchers; close it when done."""

    def __init__(self) -> None:
        self._server = ForkServer("tests.forking_torchrun", environment())

    def close(self) -> None:
        self._server.close()

    def __call__(
        self, folder: Path, *launches: Sequence[str], more: Sequence[Mapping[str, str]] | None = None
    ) -> list[Ended]:
        """Run launches, each by its command line, at once with the variables of `more`; `folder` gets their output."""
        files = [(folder / f"{number}.out", folder / f"{number}.err") for number in range(len(launches))]
        asked = [
            {"arguments": list(arguments), "out": str(out), "err": str(err), "environment": environment(variables)}
            for arguments, (out, err), variables in zip(launches, files, more or [{}] * len(launches), strict=True)
        ]
        codes = self._server.ask(asked)
        texts = [[path.read_text(encoding="utf-8") for path in pair] for pair in files]
        return [Ended(code, *output) for code, output in zip(codes, texts, strict=True)]


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of this process, and what every training of several processes gets."""
    always = {"PYTHONPATH": PYTHONPATH, "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **always, **(more or {})}


class ForkedWorker:
    """The part of `subprocess.Popen` that torchrun uses, without a new interpreter."""

    def __init__(self, args: tuple[str, ...], env: dict[str, str], **_: Any) -> None:
        self._code: int | None = None
        self.pid = _forked(lambda: _run_program(args, env))

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.02)
        return code


def _forked(run: Callable[[], None]) -> int:
    """Run a function in a forked child, which ends as an interpreter would; return its pid."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        run()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _run_program(args: tuple[str, ...], env: dict[str, str]) -> None:
    """Run what `python ARGS` would."""
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(env)
    fork_tools()
    _, *options = args
    while options[0].startswith("-"):
        option = options.pop(0)
        if option == "-m":
            sys.argv = options
            runpy.run_module(options[0], run_name="__main__", alter_sys=True)
            return
    sys.argv = options
    runpy.run_path(options[0], run_name="__main__")


def _launch(asked: dict[str, Any]) -> None:
    from accelerate.commands import accelerate_cli
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(asked["environment"])
    subprocess_handler.Popen = ForkedWorker  # type: ignore[misc, assignment]
    sys.argv = asked["arguments"]
    accelerate_cli.main() if sys.argv[0] == "accelerate" else run.main()


def _code_of(pid: int, deadline: float) -> int:
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)  # torchrun ends its workers
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Load everything, then serve requests."""
    import accelerate.commands.accelerate_cli  # noqa: F401
    from matplotlib.figure import Figure

    load_everything()
    # nothing here looks at a picture
    Figure.savefig = lambda _figure, path, **_: path.write_bytes(b"not painted")  # type: ignore[method-assign]
    print("ready", flush=True)
    for line in sys.stdin:
        launches = json.loads(line)
        pids = [_forked(lambda asked=asked: _launch(asked)) for asked in launches]  # type: ignore[misc]
        deadline = time.monotonic() + TIME_OUT_S
        print(json.dumps([_code_of(pid, deadline) for pid in pids]), flush=True)
    os._exit(0)  # an interpreter with all of this takes seconds to end


if __name__ == "__main__":
    main()
