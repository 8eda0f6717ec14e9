"""A process that has loaded everything and forks a child for each command, which saves five seconds per command.

Reads one JSON object per line from stdin and runs `aegis ARGUMENTS` in a forked child:

    folder      its working directory, which gets a separate cache
    arguments   of the command line
    environment variables to set for it
    output      the file for its output
    powerless   whether it drops root's right to write where no permission allows it
    state       a state file for crashpoint.c, or null
    painted     whether pictures are painted; else a file has a picture's values, which takes half a training less
    blows       signals to send: {"signal": 2, "after_s": 0.1}, or {"signal": 2, "rows": 3} once the run's
                metrics.jsonl has that number of rows, or {"signal": 2, "file": ".part-"} once a file's name begins so

The command waits where the first of them is due until it was sent, so that a sender who gets no processor is not late.

It waits until the child and every process that it started have ended, and answers with one JSON line,
{"code", "lingered_s", "peak_bytes"}.

The converter and the quantizer are forked too, and run their own scripts from the first line.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import struct
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests.fork_server import load_everything
from tests.tool_server import fork_tools

_PR_SET_CHILD_SUBREAPER = 36
_LINGERING_S = 20.0
_WAITING_S = 60.0


def _run_command(folder: str, arguments: list[str], output: str) -> int:
    from aegis.cli import app

    fork_tools()
    os.chdir(folder)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
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


def _write_values(figure: Any, path: Path, **_: object) -> None:
    """Write a picture's values in place of the picture."""
    lines = [line for axes in figure.axes for line in axes.lines]
    path.write_bytes(b"".join(line.get_xydata().tobytes() for line in lines) or b"no line")


def _is_due(blow: dict[str, Any], folder: Path) -> bool:
    if "rows" in blow:
        metrics = folder / "run" / "metrics.jsonl"
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= blow["rows"]
    return any(name.startswith(blow["file"]) for _, _, names in os.walk(folder) for name in names)


def _wait_for(blow: dict[str, Any], folder: Path, sent: int) -> None:
    """Let this command wait before its next row, or beside its first tool, until the other end of `sent` is closed."""
    from aegis.llama_cpp import process
    from aegis.training.metrics_log import MetricsLog

    place, name = (MetricsLog, "write") if "rows" in blow else (process, "_watch")
    go_on = getattr(place, name)

    def patient(*arguments: Any, **options: Any) -> Any:
        if "file" in blow or _is_due(blow, folder):
            select.select([sent], [], [], _WAITING_S)
        return go_on(*arguments, **options)

    setattr(place, name, patient)


def _strike(child: int, folder: Path, blows: list[dict[str, Any]], waiting: int) -> None:
    for blow in blows:
        if "after_s" in blow:
            time.sleep(blow["after_s"])
        else:
            while not _is_due(blow, folder):
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    return
                time.sleep(0.002)
        os.kill(child, blow["signal"])
        if blow is blows[0]:
            os.write(waiting, b"x")


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
    from matplotlib.figure import Figure

    load_everything()
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        sent, waiting = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(waiting)
            if asked["blows"] and "after_s" not in asked["blows"][0]:
                _wait_for(asked["blows"][0], Path(asked["folder"]), sent)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ["AEGIS_CACHE_DIR"] = asked["folder"] + "/cache"
            os.environ.update(asked["environment"])
            if asked["state"]:
                os.environ["CRASHPOINT_STATE"] = asked["state"]
                shim.crashpoint_use(asked["state"].encode())
            if not asked["painted"]:
                Figure.savefig = _write_values  # type: ignore[assignment, method-assign]
            if asked["powerless"]:
                _give_up_power(shim)
            os._exit(_run_command(asked["folder"], asked["arguments"], asked["output"]))
        os.close(sent)
        _strike(child, Path(asked["folder"]), asked["blows"], waiting)
        os.close(waiting)
        print(json.dumps(_wait_for_all(child)), flush=True)


if __name__ == "__main__":
    main()
