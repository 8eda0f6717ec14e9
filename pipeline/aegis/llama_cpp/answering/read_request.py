"""Reads and checks a request: its origin, and its body, with bounded size and time.

The fields are those of llama-cpp-python's server, and OpenAI's newer forms of them.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from pydantic import ValidationError
from starlette.requests import ClientDisconnect, Request

from aegis.llama_cpp.answering.newer_forms import Kind, as_bindings
from aegis.llama_cpp.answering.refusal import Refusal

MAX_BODY_BYTES = 4 << 20
"""A context of 128k tokens is half a megabyte of text."""
BODY_SECONDS = 30.0
OF_THIS_MACHINE = r"https?://(localhost|127\.0\.0\.1)(:\d+)?"
"""The origins whose pages may ask and read."""
_SHOWN_FAULTS, _FAULT_CHARS = 3, 200


async def read_request(request: Request, kind: Kind, *, body_seconds: float = BODY_SECONDS) -> Any:
    """Read the body and return a `request_forms.ChatRequest` or a `request_forms.CompletionRequest`.

    Raises:
        Refusal: a page of another origin asks (403), the body is not declared as JSON (415), too large (413), too slow
            (408) or invalid (400).
        ClientDisconnect: the client has disconnected.
    """
    _refuse_foreign(request)
    try:
        body = await asyncio.wait_for(_read(request), body_seconds)
    except TimeoutError:
        raise Refusal(408, "serving.body_too_slow", seconds=body_seconds) from None
    return checked(body, kind)


def _refuse_foreign(request: Request) -> None:
    """Refuse what any page that is open in a browser may send: it could read no answer, but keep the model busy."""
    origin = request.headers.get("origin")
    if origin is not None and not re.fullmatch(OF_THIS_MACHINE, origin):
        raise Refusal(403, "serving.foreign_origin", origin=origin[:100])
    # a browser asks the server before it lets a page send this type, and gets no consent; a form cannot send it
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "serving.not_declared_json")


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
    from aegis.llama_cpp.answering.request_forms import ChatRequest, CompletionRequest

    model = ChatRequest if kind == "chat" else CompletionRequest
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "serving.not_json", error=str(error)) from None
    if isinstance(fields, dict):
        as_bindings(fields, kind)
    try:
        wanted = model.model_validate(fields)
        json.dumps(wanted.model_dump(), ensure_ascii=False, allow_nan=False).encode()
    except ValidationError as error:
        raise Refusal(400, "serving.invalid", faults="; ".join(map(_line_of, error.errors()[:_SHOWN_FAULTS]))) from None
    except (ValueError, RecursionError) as error:  # half a surrogate pair, NaN in a schema; nested too deep
        raise Refusal(400, "serving.invalid", faults=f"{type(error).__name__}: {error}"[:_FAULT_CHARS]) from None
    for name in ("n", "best_of"):
        if getattr(wanted, name, None) not in (None, 1):
            raise Refusal(400, "serving.only_one", name=name)
    if kind == "chat" and not wanted.messages:
        raise Refusal(400, "serving.no_messages")
    if isinstance(getattr(wanted, "prompt", ""), list):
        if len(wanted.prompt) != 1:
            raise Refusal(400, "serving.only_one_prompt")
        (wanted.prompt,) = wanted.prompt
    return wanted


def _line_of(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {fault['msg']}"[:_FAULT_CHARS]


__all__ = ["BODY_SECONDS", "MAX_BODY_BYTES", "OF_THIS_MACHINE", "ClientDisconnect", "Kind", "checked", "read_request"]
