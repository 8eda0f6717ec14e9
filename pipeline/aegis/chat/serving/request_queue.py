"""The queue of requests: one answer at a time, first come, first served, with a maximum number of waiting requests."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect

from aegis.llama_cpp.answering.refusal import Refusal

_LOOK_SECONDS = 0.5


class RequestQueue:
    """The requests that wait for the models.

    Args:
        waiting: maximum number of waiting requests, without the one that is being answered.
    """

    def __init__(self, waiting: int) -> None:
        self._max_waiting = waiting
        self._waiting = 0
        self._lock = asyncio.Lock()
        self._answer_seconds = 1.0

    @asynccontextmanager
    async def turn(self, has_left: Callable[[], Awaitable[bool]]) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the block runs.

        Args:
            has_left: returns whether the client has disconnected; such a client stops waiting.

        Raises:
            Refusal: too many requests are waiting (503).
            ClientDisconnect: the client has disconnected.
        """
        if self._lock.locked() and self._waiting >= self._max_waiting:
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
            if await has_left():  # since the last look
                raise ClientDisconnect
        except BaseException:
            if acquiring.done() and not acquiring.cancelled():
                self._lock.release()
            acquiring.cancel()
            raise
