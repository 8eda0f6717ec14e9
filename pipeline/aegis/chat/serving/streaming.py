"""Answers a request over HTTP, streamed as server-sent events or in one piece; a failed one gets a refusal."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from aegis.chat.serving.request_queue import RequestQueue
from aegis.llama_cpp.answering.read_request import Kind, read_request
from aegis.llama_cpp.answering.refusal import Refusal

_LOOK_SECONDS = 0.5
_DONE = b"data: [DONE]\n\n"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

_log = logging.getLogger(__name__)


class Answering(Protocol):
    """The interface of `engine.Engine`, which tests replace."""

    def answers(self, kind: Kind, request: Any) -> AsyncGenerator[dict[str, Any], None]: ...

    def leave_off(self) -> None: ...

    def close(self) -> None: ...


class Endpoint:
    """Answers one kind of request, in one piece or streamed.

    It is an ASGI application and not a function that returns a response, so that its turn is released however the
    request ends, even if the response is never started.
    """

    def __init__(self, engines: Mapping[str, Answering], queue: RequestQueue, kind: Kind) -> None:
        self._engines = engines
        self._queue = queue
        self._kind: Kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        reply = _Reply(scope, receive, send)
        try:
            wanted = await read_request(request, self._kind)
            engine = self._engines.get(wanted.model) or next(iter(self._engines.values()))
            async with (
                self._queue.turn(request.is_disconnected),
                self._watched(request, engine),
                aclosing(engine.answers(self._kind, wanted)) as pieces,
            ):
                async for piece in pieces:
                    if wanted.stream:
                        await reply.piece(piece)
                    else:
                        await reply.whole(piece)
            await reply.end()
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # the server ends, and this request has taken too long for it
            await reply.refuse(Refusal(503, "serving.closed"))
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception:
            _log.exception("a request failed")
            await reply.refuse(Refusal(500, "serving.failed"))

    @asynccontextmanager
    async def _watched(self, request: Request, engine: Answering) -> AsyncIterator[None]:
        """Cancel the answer when the client disconnects, so that waiting clients are not delayed."""

        async def watch() -> None:
            while True:
                if await request.is_disconnected():
                    # again and again: the first time may be before the model has taken the request up
                    engine.leave_off()
                await asyncio.sleep(_LOOK_SECONDS)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()


class _Reply:
    """A response that starts with its first piece: an error before it has an HTTP status, a later one is an event."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._respond: Callable[[Response], Any] = lambda response: response(scope, receive, send)
        self._begun = False

    async def piece(self, fields: dict[str, Any]) -> None:
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
        await self._send_event(fields)

    async def whole(self, fields: dict[str, Any]) -> None:
        await self._respond(JSONResponse(fields))

    async def end(self) -> None:
        """End the stream, if one was started."""
        if self._begun:
            await self._send({"type": "http.response.body", "body": _DONE})

    async def refuse(self, refusal: Refusal) -> None:
        if not self._begun:
            await self._respond(JSONResponse(refusal.body, refusal.status, refusal.headers))
            return
        await self._send_event(refusal.body)
        await self._send({"type": "http.response.body", "body": b""})

    async def _send_event(self, fields: dict[str, Any]) -> None:
        event = f"data: {json.dumps(fields, ensure_ascii=False)}\n\n".encode("utf-8", "replace")
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
