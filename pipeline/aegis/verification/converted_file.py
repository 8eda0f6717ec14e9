"""The f16 GGUF that export leaves for a verification in the same process."""

from __future__ import annotations

import threading
from pathlib import Path


class ConvertedFile:
    """A file, and the moment from which it does not change.

    Args:
        path: where it will be; not if export publishes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._settled = threading.Event()

    def take(self, f16: Path) -> Path:
        """Move the file here, and return where it is."""
        f16.replace(self.path)
        self.settle()
        return self.path

    def settle(self) -> None:
        """From now on it is there, or will never be."""
        self._settled.set()

    def is_left(self) -> bool:
        """Wait until that is settled, and return whether it is there."""
        self._settled.wait()
        return self.path.is_file()
