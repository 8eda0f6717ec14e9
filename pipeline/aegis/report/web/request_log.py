"""Logs a line per request when it has ended: time, method, path, status and duration."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from aegis.messages import phrase

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

QUIET_PATHS = frozenset({"/state"})
"""What an open page asks for every few seconds."""
_PATH_LETTERS = 60


class RequestLog:
    """An application around another one, which gives a line per request to `log`."""

    def __init__(self, app: ASGIApp, log: Callable[[str], None]) -> None:
        self._app, self._log = app, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in QUIET_PATHS:
            await self._app(scope, receive, send)
            return
        status = 0
        began = time.monotonic()

        async def seen(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            self._log(
                phrase(
                    "web.request",
                    time=time.strftime("%H:%M:%S"),
                    method=scope["method"],
                    # a decoded one may hold line feeds and spaces, and so look like other lines
                    path=quote(scope["path"])[:_PATH_LETTERS],
                    # 0: the client left before there was an answer
                    status=status or "-",
                    seconds=time.monotonic() - began,
                )
            )
