"""Starts the `aegis` command and `python -m aegis`; in an incomplete installation, prints what is missing."""

from __future__ import annotations

import logging
import sys


def main() -> None:
    """Run the command line; if a package is missing, print the doctor's findings instead of a traceback."""
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
    finding = Finding("command_line", "fail", phrase("doctor.not_installed_whole", error=error), set_up_again())
    sys.stderr.write(diagnosed([finding, *examine()]) + "\n")
    return 3


if __name__ == "__main__":
    main()
