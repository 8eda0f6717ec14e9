"""One answer at a time, first come, first served, and only so many waiting."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect

from aegis.llama_cpp.serving.refusal import Refusal

_LOOK_SECONDS = 0.5


class Turns:
    """Turns with the model.

    Args:
        waiting: requests that may wait, beside the one that is being answered.
    """

    def __init__(self, waiting: int) -> None:
        self._most = waiting
        self._waiting = 0
        self._lock = asyncio.Lock()
        self._answer_seconds = 1.0

    @asynccontextmanager
    async def turn(self, has_left: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs.

        Args:
            has_left: whether the client has gone; whoever has gone waits no longer.

        Raises:
            Refusal: too many wait already (503).
            ClientDisconnect: the client has gone.
        """
        if self._lock.locked() and self._waiting >= self._most:
            wait = math.ceil(self._answer_seconds * (self._waiting + 1))
            raise Refusal(503, "serving.too_many", retry_after=wait, waiting=self._waiting)
        self._waiting += 1
        try:
            await self._acquire(has_left)
        finally:
            self._waiting -= 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._answer_seconds = time.monotonic() - began
            self._lock.release()

    async def _acquire(self, has_left: Callable[[], Awaitable[bool]]) -> None:
        acquiring = asyncio.ensure_future(self._lock.acquire())
        try:
            while not (await asyncio.wait({acquiring}, timeout=_LOOK_SECONDS))[0]:
                if await has_left():
                    raise ClientDisconnect
        except BaseException:
            if acquiring.done() and not acquiring.cancelled():
                self._lock.release()
            acquiring.cancel()
            raise
