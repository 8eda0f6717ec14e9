"""Starts the `aegis` command and `python -m aegis`; in an incomplete installation, prints what is missing."""

from __future__ import annotations

import gc
import sys

_NEW_OBJECTS = 10_000
"""Between two collections. With Python's own number, a quarter of the seconds that torch and transformers take to be
imported goes into collections that find nothing."""


def main() -> None:
    """Run the command line; if a package is missing, print the doctor's findings instead of a traceback."""
    gc.set_threshold(_NEW_OBJECTS)
    try:
        from aegis.cli import app
    except ImportError as error:
        from aegis.cli.broken_installation import is_foreign, print_diagnosis

        if not is_foreign(error):
            raise
        sys.exit(print_diagnosis(error))
    try:
        app.main()
    finally:
        gc.freeze()  # otherwise the interpreter's last collections look at every object of torch, for a second or two


if __name__ == "__main__":
    main()
