"""Tests of the log of requests: a line per request, whatever its path holds."""

from __future__ import annotations

import asyncio
from typing import Any

from aegis.report.web.request_log import RequestLog


def logged(path: str) -> list[str]:
    """Return the lines that a request for a path, which the server has decoded, leaves in the log."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 404})

    async def send(_message: Any) -> None: ...

    lines: list[str] = []
    scope = {"type": "http", "method": "GET", "path": path}
    asyncio.run(RequestLog(app, lines.append)(scope, None, send))  # type: ignore[arg-type]
    return lines


def test_a_path_cannot_look_like_another_request() -> None:
    (line,) = logged("/\n02:00:00  GET /faked  200")
    assert line.splitlines() == [line]
    assert line.split()[1:4] == ["GET", "/%0A02%3A00%3A00%20%20GET%20/faked%20%20200", "404"]


def test_an_ordinary_path_is_logged_as_it_is_and_a_long_one_is_cut() -> None:
    assert "GET /v1/chat/completions  404" in logged("/v1/chat/completions")[0]
    assert len(logged("/" + "x" * 10_000)[0]) < 120
