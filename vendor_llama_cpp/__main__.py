"""`python -m vendor_llama_cpp`: fetch the converter if need be, and print where it is."""

from __future__ import annotations

import sys
import time

from . import Step, VendorError, converter_tree, load_pin

_LINE_SECONDS = 5.0


class _Screen:
    """The steps on stderr, a line each; the download under it in one line, or without a terminal one now and then."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._come_bytes = 0
        self._began = self._spoke = time.monotonic()
        self._live = sys.stderr.isatty()
        self._drawn = 0

    def step(self, name: Step, text: str) -> None:
        self._began = self._spoke = time.monotonic()
        self._write(text + "\n")

    def fetched(self, more_bytes: int) -> None:
        self._come_bytes += more_bytes
        now = time.monotonic()
        if not self._live and now - self._spoke < _LINE_SECONDS:
            return
        self._spoke = now
        left_s = (now - self._began) * (self._total_bytes / self._come_bytes - 1)
        text = f"{self._come_bytes / 1e6:.0f} of {self._total_bytes / 1e6:.0f} MB, about {left_s:.0f} s left"
        if self._live:
            self._write("\r" + text.ljust(self._drawn))
            self._drawn = len(text)
        else:
            self._write(text + "\n")

    def close(self) -> None:
        """Take the line away that is drawn over."""
        if self._drawn:
            self._write("")

    def _write(self, text: str) -> None:
        if self._drawn and not text.startswith("\r"):
            text = "\r" + " " * self._drawn + "\r" + text
            self._drawn = 0
        sys.stderr.write(text)
        sys.stderr.flush()


def main() -> int:
    """Print the tree's directory to stdout and the steps to stderr; 1 on failure."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    screen = _Screen(load_pin().size_bytes)
    try:
        tree = converter_tree(screen)
    except VendorError as error:
        screen.close()
        print(error, file=sys.stderr)
        return 1
    print(tree)
    return 0


if __name__ == "__main__":
    sys.exit(main())
