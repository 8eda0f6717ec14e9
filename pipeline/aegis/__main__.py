"""The `aegis` command, and `python -m aegis`: the door, or, in a set-up that is not whole, what it lacks."""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """Open the door; where a package it is made of is missing, say so instead of showing a traceback."""
    try:
        from aegis.cli import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("aegis", "vendor_llama_cpp"):
            raise
        sys.exit(_diagnosed(error))
    app.main()


def _diagnosed(error: ImportError) -> int:
    from aegis.cli import streams
    from aegis.cli.screens.results import diagnosed
    from aegis.doctor import Finding, examine, set_up_again
    from aegis.messages import phrase

    streams.prepare()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    door = Finding("command_line", "fail", phrase("doctor.not_installed_whole", error=error), set_up_again())
    sys.stderr.write(diagnosed([door, *examine()]) + "\n")
    return 3


if __name__ == "__main__":
    main()
