"""Calls the `main` of llama.cpp's imatrix, which is in a library. Run by _child.py."""

from __future__ import annotations

import ctypes
import sys


def main(tool: str, *arguments: str) -> int:
    """Run the tool with `arguments`, and return its exit code; it may also end this process itself."""
    given = [argument.encode() for argument in ("llama-imatrix", *arguments)]
    argv = (ctypes.c_char_p * (len(given) + 1))(*given, None)
    return int(ctypes.CDLL(tool).main(len(given), argv))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
