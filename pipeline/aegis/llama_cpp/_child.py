"""Runs one script in a process that cannot outlive its parent. It is run as a file and uses only the standard library.

    python -P -B _child.py PART IMPORT_FROM SCRIPT [ARGUMENT ...]
    python -P -B _child.py - IMPORT_FROM SCRIPT [MODULE ...]

The parent holds the other end of this process's standard input. When the parent ends, for any reason, the system closes
that end, the read below returns, PART (the incomplete output) is removed and this process stops. This needs no signal
and no job object, and works on every system.

The second form imports the modules and waits for a line on standard input, a JSON list: the folder to work in, PART and
the arguments.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import threading

WAITING = "-"


def _end_with_parent(lifeline: int, part: str) -> None:
    with contextlib.suppress(OSError):
        while os.read(lifeline, 4096):
            pass
    # On Windows an open file cannot be removed: the incomplete file stays there, under its temporary name.
    with contextlib.suppress(OSError):
        os.unlink(part)  # noqa: PTH108 (importing pathlib would take a fifth of this process's start)
    os._exit(1)


def _waited_for(lifeline: int, modules: list[str]) -> list[str]:
    """Import the modules, wait for the line, and return PART and the arguments; end if the parent does."""
    import importlib
    import json

    for module in modules:
        importlib.import_module(module)
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(lifeline, 4096)
        if not read:
            os._exit(1)
        line += read
    folder, *given = json.loads(line)
    os.chdir(folder)
    return [str(word) for word in given]


def main(part: str, import_from: str, script: str, *arguments: str) -> None:
    """Run `script` as `__main__` with `arguments`; `import_from`, if not empty, is put first on sys.path.

    If `part` is WAITING, the arguments are modules to import, and those of the script are read afterwards.
    """
    lifeline = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if import_from:
        sys.path.insert(0, import_from)
    given = list(arguments)
    if part == WAITING:
        part, *given = _waited_for(lifeline, given)
    threading.Thread(target=_end_with_parent, args=(lifeline, part), daemon=True).start()
    sys.argv = [script, *given]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
