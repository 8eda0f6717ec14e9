"""Reports an installation in which a package of others does not import: the doctor's findings, with its cure."""

from __future__ import annotations

import logging
import sys

_OURS = ("aegis", "vendor_llama_cpp")


def is_foreign(error: ImportError) -> bool:
    """Whether what does not import is a package of others: an import of ours that fails is a bug."""
    root = (error.name or "").partition(".")[0]
    return root not in _OURS


def print_diagnosis(error: ImportError) -> int:
    """Print the doctor's findings, the failed import first, and return the exit code."""
    from aegis.cli import streams
    from aegis.cli.screens.results import diagnosed
    from aegis.doctor import Finding, examine, set_up_again
    from aegis.messages import phrase

    streams.prepare()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    finding = Finding("command_line", "fail", phrase("doctor.not_installed_whole", error=error), set_up_again())
    sys.stderr.write(diagnosed([finding, *examine()]) + "\n")
    return 3
