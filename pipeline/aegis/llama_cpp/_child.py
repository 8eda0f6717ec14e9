"""Runs one script in a process that cannot outlive its parent. It is run as a file and uses only the standard library.

    python -P -B _child.py PART IMPORT_FROM SCRIPT [ARGUMENT ...]

The parent holds the other end of this process's standard input. When the parent ends, for any reason, the system closes
that end, the read below returns, PART (the incomplete output) is removed and this process stops. This needs no signal
and no job object, and works on every system.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading


def _end_with_parent(lifeline: int, part: str) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    # On Windows an open file cannot be removed: the incomplete file stays there, under its temporary name.
    with contextlib.suppress(OSError):
        os.unlink(part)  # noqa: PTH108 (importing pathlib would take a fifth of this process's start)
    os._exit(1)


def main(part: str, import_from: str, script: str, *arguments: str) -> None:
    """Run `script` as `__main__` with `arguments`; `import_from`, if not empty, is put first on sys.path."""
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_end_with_parent, args=(lifeline, part), daemon=True).start()
    sys.argv = [script, *arguments]
    if import_from:
        sys.path.insert(0, import_from)
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
