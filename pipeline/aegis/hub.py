"""What the Hub's client raises, and how far its downloads are, for those who tell people about it."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from aegis import progress

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def http_error() -> type[Exception]:
    """The HTTP library's own root of errors: which library that is changes with huggingface-hub's version."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/name` of the Hub; a path of two parts has it too."""
    return _HUB_ID.fullmatch(name) is not None


@contextmanager
def download_bars(title: str) -> Iterator[Any]:
    """A tqdm class for the Hub's client: its bytes move one bar of ours, which opens when there is something to fetch.

    The client makes a bar each for what comes over the network and for what is written, and one that counts files; the
    last one in bytes is what is written. Their totals grow as files begin.
    """
    from tqdm.auto import tqdm

    lock = threading.Lock()
    followed: list[Any] = []
    opened: list[progress.Task] = []
    known = [0.0]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **{**settings, "disable": True})
            if settings.get("unit") == "B":
                followed[:] = [self]

        def update(self, n: float | None = 1) -> None:
            if self in followed and n:
                self._look()
                for task in opened:
                    task.advance(n)

        def refresh(self, *_: Any, **__: Any) -> None:
            if self in followed:
                self._look()

        def _look(self) -> None:
            with lock:
                grown = (self.total or 0) - known[0]
                if grown > 0 and not opened:
                    opened.append(held.enter_context(progress.task(title, grown, "B")))
                elif grown > 0:
                    opened[0].grow(grown)
                known[0] += max(0.0, grown)

        def __eq__(self, other: object) -> bool:
            return self is other

        __hash__ = tqdm.__hash__

    with ExitStack() as held:
        yield Bar
