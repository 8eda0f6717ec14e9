"""What reports the progress while the converter is fetched."""

from __future__ import annotations

from typing import Literal, Protocol

Step = Literal["download", "check", "unpack"]


class Listener(Protocol):
    """Told by this package; what a person sees of it is the listener's business."""

    def step(self, name: Step, text: str) -> None:
        """A step that takes time begins; `text` says so in English."""
        ...

    def fetched(self, more_bytes: int) -> None:
        """So much more of the archive has come, of the pin's `size_bytes`."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, name: Step, text: str) -> None:
        pass

    def fetched(self, more_bytes: int) -> None:
        pass
