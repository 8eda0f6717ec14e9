"""Reads and checks a request's body, with bounded size and time; the fields are those of llama-cpp-python's server."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Literal

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from aegis.llama_cpp.answering.refusal import Refusal

MAX_BODY_BYTES = 4 << 20
"""A context of 128k tokens is half a megabyte of text."""
BODY_SECONDS = 30.0
_SHOWN_FAULTS = 3

Kind = Literal["chat", "completion"]


async def read_request(request: Request, kind: Kind, *, body_seconds: float = BODY_SECONDS) -> Any:
    """Read the body and return a `CreateChatCompletionRequest` or a `CreateCompletionRequest`.

    Raises:
        Refusal: the body is too large (413), too slow (408) or invalid (400).
        ClientDisconnect: the client has disconnected.
    """
    try:
        body = await asyncio.wait_for(_read(request), body_seconds)
    except TimeoutError:
        raise Refusal(408, "serving.body_too_slow", seconds=body_seconds) from None
    return checked(body, kind)


async def _read(request: Request) -> bytes:
    read = bytearray()
    # a declared length is checked before the body is read
    if int(request.headers.get("content-length") or 0) > MAX_BODY_BYTES:
        raise Refusal(413, "serving.body_too_large", most=MAX_BODY_BYTES)
    async for piece in request.stream():
        read += piece
        if len(read) > MAX_BODY_BYTES:
            raise Refusal(413, "serving.body_too_large", most=MAX_BODY_BYTES)
    return bytes(read)


def checked(body: bytes, kind: Kind) -> Any:
    """Parse a body's bytes to a request; raises as `read_request`."""
    from llama_cpp.server import types

    model = types.CreateChatCompletionRequest if kind == "chat" else types.CreateCompletionRequest
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "serving.not_json", error=str(error)) from None
    try:
        wanted = model.model_validate(fields)
        json.dumps(wanted.model_dump(), ensure_ascii=False).encode()
    except ValidationError as error:
        raise Refusal(400, "serving.invalid", faults="; ".join(map(_line_of, error.errors()[:_SHOWN_FAULTS]))) from None
    except (ValueError, RecursionError) as error:  # half a surrogate pair; nested too deep
        raise Refusal(400, "serving.invalid", faults=type(error).__name__) from None
    for name in ("n", "best_of"):
        if getattr(wanted, name, None) not in (None, 1):
            raise Refusal(400, "serving.only_one", name=name)
    if isinstance(getattr(wanted, "prompt", ""), list):
        if len(wanted.prompt) != 1:
            raise Refusal(400, "serving.only_one_prompt")
        (wanted.prompt,) = wanted.prompt
    return wanted


def _line_of(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {fault['msg']}"[:200]


__all__ = ["BODY_SECONDS", "MAX_BODY_BYTES", "ClientDisconnect", "Kind", "checked", "read_request"]
