"""`python -m vendor_llama_cpp`: fetch the converter if need be, and print where it is."""

from __future__ import annotations

import sys

from vendor_llama_cpp import VendorError, converter_tree


def main() -> int:
    """Print the tree's directory to stdout and the steps to stderr; 1 on failure."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    try:
        tree = converter_tree(lambda text: print(text, file=sys.stderr, flush=True))
    except VendorError as error:
        print(error, file=sys.stderr)
        return 1
    print(tree)
    return 0


if __name__ == "__main__":
    sys.exit(main())
