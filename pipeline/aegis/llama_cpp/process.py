"""Starts a tool of llama.cpp, watches it, keeps its last lines, and removes its output if it fails.

A thread reads all output at once and keeps only the last lines: a tool that prints a gigabyte, or bytes that are not
text, takes no memory and cannot cause a deadlock.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from aegis import progress
from aegis.errors import AegisError, EnvironmentFault, ToolError, reason
from aegis.messages import Bilingual, bilingual

KEPT_LINES = 20
SILENCE_LIMIT_S = 1800.0
"""A tool that prints nothing for this long has hung: its slowest step, one big tensor, takes minutes."""

_LONGEST_LOOK_S = 1.0
"""Maximum time counted between two checks of the tool; a tenth of a second passes, and more on a busy machine."""

LINE_END = rb"[\r\n]+"
_MAX_LINE_BYTES = 4096
_MAX_SHOWN_CHARS = 400
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")
_DISK_FULL = re.compile(
    r"No space left on device|Errno 28\b|Errno 27\b|Disk quota exceeded|not enough space on the disk"
    r"|\d+ requested and \d+ written|basic_ios::clear"  # numpy's tofile; C++ streams
)
if sys.platform == "win32":
    OWN_GROUP: Mapping[str, Any] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    OWN_GROUP: Mapping[str, Any] = {"start_new_session": True}
"""Popen's arguments for a child that gets no Ctrl-C: this process gets it, ends the child, and cleans up."""
_RUNNER = Path(__file__).with_name("_child.py")

Fraction = Callable[[str], float | None]
"""Returns the finished fraction of the work, 0 to 1, from a printed line; None for a line without it."""


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Yield a temporary path beside `out`, which becomes `out` by one rename if the block succeeds.

    On any failure, even Ctrl-C, it is removed and `out` stays as it was. It is not flushed to the disk: publishing does
    that, and an f16 file that is only quantized need not be flushed. The name is ASCII, because llama.cpp opens its
    output with the system's code page on Windows; it has no braces, which the converter takes for a template.
    """
    part = out.parent / f".part-{uuid4().hex}.gguf"
    try:
        yield part
        part.replace(out)
    except OSError as error:
        raise EnvironmentFault("process.cannot_write", out=out, error=reason(error)) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def run_tool(
    tool: Bilingual,
    script: Path,
    arguments: Sequence[str],
    *,
    part: Path,
    title: str,
    fraction: Fraction,
    import_from: Path | None = None,
    environment: Mapping[str, str | None] | None = None,
    line_end: bytes = LINE_END,
    silence_limit_s: float = SILENCE_LIMIT_S,
    writes: bool = True,
    begin: Callable[[Path, Sequence[str]], subprocess.Popen[bytes] | None] | None = None,
) -> None:
    """Run a Python script to its end, in `part`'s directory, with a progress bar.

    Args:
        tool: its name, for errors.
        script: what to run, an absolute path.
        arguments: its arguments; no shell sees them.
        part: the file that it writes; the child removes it if this process dies.
        title: the progress bar's title.
        fraction: reads the progress from a printed line.
        import_from: put first on the script's sys.path.
        environment: changes to this process's environment; None removes a variable.
        line_end: pattern of an end of line; some tools print their progress without one.
        silence_limit_s: maximum seconds without output.
        writes: whether `part` must exist at the end.
        begin: lets a prepared process run the script, if it can: `PreparedTool.begin`.

    Raises:
        ToolError: the script failed or hung; the error has its last lines.
        EnvironmentFault: it failed because the disk is full.
    """
    listener = _Listener(fraction, line_end)
    child = begin(part, arguments) if begin else None
    if child is None:
        child = start([str(part), str(import_from or ""), str(script), *arguments], part.parent, environment or {})
    with _heard(child, listener):
        code = _watch(child, listener, title, silence_limit_s)
    if code is None:
        raise _failure(tool, bilingual("process.silent", seconds=silence_limit_s), listener, part)
    if code != 0:
        reason = bilingual("process.signal", number=-code) if code < 0 else bilingual("process.code", code=code)
        raise _failure(tool, bilingual("process.ended", reason=reason), listener, part)
    if writes and not part.is_file():
        raise _failure(tool, bilingual("process.no_file"), listener, part)


def start(arguments: Sequence[str], folder: Path, environment: Mapping[str, str | None]) -> subprocess.Popen[bytes]:
    """Start `_child.py` in a folder; the arguments and the changes to the environment are explained there and above."""
    return subprocess.Popen(
        [sys.executable, "-P", "-B", str(_RUNNER), *arguments],
        cwd=folder,
        env=_environment(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **OWN_GROUP,
    )


@contextmanager
def _heard(child: subprocess.Popen[bytes], listener: _Listener) -> Iterator[None]:
    """Listen to the child while the block runs; it has ended when the block ends."""
    assert child.stdout is not None
    reader = threading.Thread(target=listener.listen, args=(child.stdout,), daemon=True)
    try:
        reader.start()
        yield
    finally:
        end(child)
        reader.join(timeout=5)
        for pipe in (child.stdin, child.stdout):
            # A grandchild may still hold the pipe; closing it while the reader is blocked would block too.
            if pipe is not None and not (pipe is child.stdout and reader.is_alive()):
                pipe.close()


def _watch(child: subprocess.Popen[bytes], listener: _Listener, title: str, limit_s: float) -> int | None:
    """Watch the child until it ends; return its exit code, or None if it printed nothing for too long."""
    with progress.task(title, total=100, unit="%") as bar:
        shown, silent_s, heard, looked_at = 0.0, 0.0, -1, time.monotonic()
        while True:
            code: int | None = None
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(timeout=0.1)
            done = 100.0 if code == 0 else 100.0 * listener.done
            if done > shown:
                bar.advance(done - shown)
                shown = done
            if code is not None:
                return code
            now = time.monotonic()
            # the clock alone would count the hours of a machine that slept or of Ctrl-Z as silence
            silent_s = silent_s + min(now - looked_at, _LONGEST_LOOK_S) if listener.heard_bytes == heard else 0.0
            heard, looked_at = listener.heard_bytes, now
            if silent_s > limit_s:
                return None


class _Listener:
    """Reads a stream to its end in bounded memory."""

    def __init__(self, fraction: Fraction, line_end: bytes) -> None:
        self.last_lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.done = 0.0
        self.heard_bytes = 0
        self._fraction = fraction
        self._line_end = line_end

    def listen(self, stream: IO[bytes]) -> None:
        rest = b""
        while chunk := os.read(stream.fileno(), 1 << 16):
            self.heard_bytes += len(chunk)
            *lines, rest = re.split(self._line_end, rest + chunk)
            rest = rest[-_MAX_LINE_BYTES:]
            for line in lines:
                self._take(line)
        self._take(rest)

    def _take(self, line: bytes) -> None:
        text = _CONTROL.sub("", line[:_MAX_LINE_BYTES].decode("utf-8", errors="replace")).rstrip()
        done = self._fraction(text)
        if done is not None:
            self.done = max(self.done, min(done, 1.0))
        elif text:
            self.last_lines.append(text[:_MAX_SHOWN_CHARS])


def _environment(changes: Mapping[str, str | None]) -> dict[str, str]:
    merged: dict[str, str | None] = {
        **os.environ,
        "PYTHONUTF8": "1",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        **changes,
    }
    return {name: value for name, value in merged.items() if value is not None}


def end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and, where there are process groups, its own children; nothing if it has ended."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _failure(tool: Bilingual, why: Bilingual, listener: _Listener, part: Path) -> AegisError:
    output = "\n".join(listener.last_lines)
    if _DISK_FULL.search(output):
        written = part.stat().st_size if part.is_file() else 0
        free = shutil.disk_usage(part.parent).free
        return EnvironmentFault(
            "process.disk_full",
            tool=tool,
            written=written / 1000000.0,
            free=free / 1000000.0,
            parent=part.parent,
            output=output,
        )
    return ToolError(
        "process.failed",
        tool=tool,
        why=why.capitalised(),
        output=bilingual("process.last_lines", output=output) if output else "",
    )
