"""Compares the space that work needs, on a disk or in memory, with the free space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NeedName = Literal[
    "disk_run",
    "disk_scratch",
    "disk_download",
    "disk_blocks",
    "gpu_memory_verify",
    "ram_kept",
    "ram_training",
    "ram_verify",
]


@dataclass(frozen=True)
class Need:
    """A need for space on a disk or in memory.

    Attributes:
        what: its name; its text is the message `need.WHAT`.
        bytes: an upper bound.
        free_bytes: free bytes; None for a GPU that is not in this machine.
        where: the folder, for a disk.
    """

    what: NeedName
    bytes: int
    free_bytes: int | None
    where: str = ""
