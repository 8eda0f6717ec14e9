"""The server's application: its routes, the allowed hosts and origins, and an answer or a refusal to each request."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from aegis.chat.serving.turns import Turns
from aegis.llama_cpp.answering.bodies import OF_THIS_MACHINE, Kind, read_request
from aegis.llama_cpp.answering.refusal import Refusal
from aegis.report.web.local import own_host_only
from aegis.report.web.pages import page

WAITING = 32
"""Maximum number of waiting requests; clients that wait a few minutes would not wait for more."""
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


def make_app(engines: Mapping[str, Answering], *, waiting: int = WAITING) -> Starlette:
    """Return the application, with the chat page.

    Args:
        engines: models that answer, by name; closed when the server ends. The first one also answers requests for a
            name that no model has.
        waiting: maximum number of waiting requests. The models answer one after the other, so that none is slowed down.
    """
    turns = Turns(waiting)

    async def models(_: Request) -> Response:
        data = [{"id": name, "object": "model", "owned_by": "me"} for name in engines]
        return JSONResponse({"object": "list", "data": data})

    async def chat(_: Request) -> Response:
        return page("chat")

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for engine in engines.values():
                engine.close()

    def answering(kind: Kind) -> _Endpoint:
        return _Endpoint(engines, turns, kind)

    return Starlette(
        routes=[
            Route("/", chat),
            Route("/v1/models", models),
            Route("/v1/chat/completions", answering("chat"), methods=["POST"]),
            Route("/v1/completions", answering("completion"), methods=["POST"]),
        ],
        middleware=[
            own_host_only(),
            Middleware(CORSMiddleware, allow_origin_regex=OF_THIS_MACHINE, allow_methods=["*"], allow_headers=["*"]),
        ],
        exception_handlers={HTTPException: _no_such_thing},
        lifespan=lifespan,
    )


def _no_such_thing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    refusal = Refusal(status, "serving.no_such_thing", method=request.method, path=request.url.path)
    return JSONResponse(refusal.body, status)


class _Endpoint:
    """Answers one kind of request, in one piece or streamed.

    It is an ASGI application and not a function that returns a response, so that its turn is released however the
    request ends, even if the response is never started.
    """

    def __init__(self, engines: Mapping[str, Answering], turns: Turns, kind: Kind) -> None:
        self._engines = engines
        self._turns = turns
        self._kind: Kind = kind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        reply = _Reply(scope, receive, send)
        try:
            wanted = await read_request(request, self._kind)
            engine = self._engines.get(wanted.model) or next(iter(self._engines.values()))
            async with (
                self._turns.turn(request.is_disconnected),
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
        except Refusal as refusal:
            await reply.refuse(refusal)
        except Exception:
            _log.exception("a request failed")
            await reply.refuse(Refusal(500, "serving.failed"))

    @asynccontextmanager
    async def _watched(self, request: Request, engine: Answering) -> AsyncIterator[None]:
        """Cancel the answer when the client disconnects, so that waiting clients are not delayed."""

        async def watch() -> None:
            while not await request.is_disconnected():
                await asyncio.sleep(_LOOK_SECONDS)
            engine.leave_off()

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
