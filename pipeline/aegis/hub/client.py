"""The Hub client: the root of its errors, its names and the form of its ids, and the progress of its transfers."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from aegis import progress
from aegis.messages.safe import printable

CARD = "README.md"
"""The name under which the Hub reads a model card."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


def http_error() -> type[Exception]:
    """Return the root class of the HTTP library's errors; the library depends on the version of huggingface-hub."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__mro__[1]


def is_hub_id(name: str) -> bool:
    """Return whether a name has the form `owner/name`, as a Hub id has; a path of two parts has it too."""
    return _HUB_ID.fullmatch(name) is not None


@contextmanager
def upload_bars(names: Iterable[str]) -> Iterator[None]:
    """Let the Hub client show its bars of an upload, unless a file's name has characters that a terminal obeys."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled() or all(printable(name) == name for name in names):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def download_bars(title: str) -> Iterator[Any]:
    """Yield a tqdm class for the Hub client that moves one bar, which opens when a download begins.

    The client makes one bar for bytes received, one for bytes written and one that counts files; the last bar in bytes
    is the one for bytes written. The totals grow as files begin.
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
