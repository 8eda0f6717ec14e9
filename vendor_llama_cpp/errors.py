"""The one failure of this package, told so that its caller can pass it on to a person."""

from __future__ import annotations

from typing import Literal

Kind = Literal["fetch", "hash", "archive", "disk"]


class VendorError(Exception):
    """llama.cpp's converter cannot be had.

    `kind` says whose turn it is: "fetch" (network, pip, a missing file), "hash" (not the pinned bytes),
    "archive" (the pinned bytes are hostile or broken), "disk" (the cache cannot be written).
    """

    def __init__(self, what: str, *, why: str, fix: str, kind: Kind) -> None:
        super().__init__("\n".join((what, why, fix)))
        self.what = what
        self.why = why
        self.fix = fix
        self.kind = kind
