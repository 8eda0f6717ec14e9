"""The server's application: its routes, and the allowed hosts and origins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aegis.chat.serving.request_queue import RequestQueue
from aegis.chat.serving.streaming import Answering, Endpoint
from aegis.llama_cpp.answering.read_request import OF_THIS_MACHINE, Kind
from aegis.llama_cpp.answering.refusal import Refusal
from aegis.report.web.local import own_host_only
from aegis.report.web.pages import page

WAITING = 32
"""Maximum number of waiting requests; clients that wait a few minutes would not wait for more."""


def make_app(engines: Mapping[str, Answering], *, waiting: int = WAITING) -> Starlette:
    """Return the application, with the chat page.

    Args:
        engines: models that answer, by name; closed when the server ends. The first one also answers requests for a
            name that no model has.
        waiting: maximum number of waiting requests. The models answer one after the other, so that none is slowed down.
    """
    queue = RequestQueue(waiting)

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

    def answering(kind: Kind) -> Endpoint:
        return Endpoint(engines, queue, kind)

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
