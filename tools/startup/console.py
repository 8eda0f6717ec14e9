"""What a person sees: numbered steps with elapsed time, signs of life, and failures that say what to do."""

from __future__ import annotations

import shutil
import sys
import time

from startup.language import either

PLAIN_LINE_SECONDS = 15.0


class StartError(Exception):
    """Something a person can mend. Printed without a traceback.

    Args:
        what: one sentence, what failed.
        fix: what to do about it, one line or several.
        code: the exit code (3 environment, 7 a tool failed).
    """

    def __init__(self, what: str, fix: str, code: int = 3) -> None:
        super().__init__(what)
        self.what = what
        self.fix = fix
        self.code = code


def say(text: str = "") -> None:
    """Print a line at once; the order against the children's output matters."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def prepare_streams() -> None:
    """Never die on a character that the console's code page lacks (a Japanese path under cp1252, say)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def clock(seconds: float) -> str:
    """Elapsed time as 7 s or 3 min 05 s."""
    whole = int(seconds)
    if whole < 60:
        return either(f"{whole} s", f"{whole} 秒")
    return either(f"{whole // 60} min {whole % 60:02d} s", f"{whole // 60} 分 {whole % 60:02d} 秒")


class Step:
    """One numbered step: a line when it starts, signs of life while it runs, a line when it is done.

    On a terminal the sign of life is one line redrawn; elsewhere it is a plain line every 15 seconds.
    """

    def __init__(self, number: int, of: int, title: str) -> None:
        self._started = time.monotonic()
        self._last_line = self._started
        self._drawn = 0
        self._live = sys.stdout.isatty()
        say(f"[{number}/{of}] {title}")

    def tick(self, detail: str) -> None:
        """Show that the step is alive, and `detail` about where it is."""
        now = time.monotonic()
        text = f"      {clock(now - self._started)}  {detail}"
        if self._live:
            text = text[: shutil.get_terminal_size().columns - 1]
            sys.stdout.write("\r" + text.ljust(self._drawn))
            sys.stdout.flush()
            self._drawn = len(text)
        elif now - self._last_line >= PLAIN_LINE_SECONDS:
            self._last_line = now
            say(text.rstrip())

    def clear(self) -> None:
        """Take the redrawn line away, so that what follows starts on an empty one."""
        if self._drawn:
            sys.stdout.write("\r" + " " * self._drawn + "\r")
            sys.stdout.flush()
            self._drawn = 0

    def done(self, detail: str = "") -> None:
        """Close the step with its elapsed time."""
        self.clear()
        elapsed = clock(time.monotonic() - self._started)
        say(either(f"      done in {elapsed}", f"      完了（{elapsed}）") + (f": {detail}" if detail else ""))
