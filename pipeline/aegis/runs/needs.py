"""Room that something needs, on a disk or in memory, beside the room that there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NeedName = Literal[
    "disk_run", "disk_scratch", "disk_download", "gpu_memory_verify", "ram_kept", "ram_training", "ram_verify"
]


@dataclass(frozen=True)
class Need:
    """Something that needs room.

    Attributes:
        what: its name; for people it is the text `need.WHAT`.
        bytes: at most.
        free_bytes: what there is; None for a GPU that is not here.
    """

    what: NeedName
    bytes: int
    free_bytes: int | None
    where: str = ""
