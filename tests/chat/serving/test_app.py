"""Tests of the server's application: accepted and refused requests, waiting, and answers, with a stand-in engine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the dev extra")
pytest.importorskip("llama_cpp.server.types", reason="needs the dev extra")
httpx = pytest.importorskip("httpx2", reason="needs the dev extra")

from aegis.chat.serving import names_of  # noqa: E402
from aegis.chat.serving.app import make_app  # noqa: E402
from aegis.llama_cpp.answering import read_request  # noqa: E402
from aegis.llama_cpp.answering.refusal import Refusal  # noqa: E402

CHAT = {"messages": [{"role": "user", "content": "春は？"}]}
URL = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


class Engine:
    """Yields three pieces, each when the test allows it, and counts the requests answered at one time."""

    def __init__(self) -> None:
        self.let = asyncio.Semaphore(0)
        self.fails_after: int | None = None
        self.answered = 0
        self.at_once = 0
        self.most_at_once = 0
        self.left = 0
        self.unheard = 0
        self.asked = 0
        self.closed = False

    async def answers(self, kind: str, request: Any) -> AsyncGenerator[dict[str, Any], None]:
        left = self.left
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for number in range(3 if request.stream else 1):
                await self.let.acquire()
                if self.left > left:
                    return
                if number == self.fails_after:
                    raise Refusal(500, "serving.model_ended")
                yield {"choices": [], "number": number}
            self.answered += 1
        finally:
            self.at_once -= 1

    def leave_off(self) -> None:
        if self.unheard:
            self.unheard -= 1
            return
        self.left += 1
        self.let.release()

    def close(self) -> None:
        self.closed = True


def run(test: Callable[[Engine, Any], Awaitable[None]], *, waiting: int = 2) -> Engine:
    engine = Engine()

    async def all_of_it() -> None:
        transport = httpx.ASGITransport(make_app({"a model": engine}, waiting=waiting))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8080") as client:
            await test(engine, client)

    asyncio.run(asyncio.wait_for(all_of_it(), 60))
    return engine


def code_of(response: Any) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return str(error["code"])


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "not_json"),
        (b"{", 400, "not_json"),
        (b"[" * 100_000, 400, "not_json"),
        (b'{"messages": [], "seed": ' + b"9" * 5000 + b"}", 400, "not_json"),
        (b"\xff\xfe", 400, "not_json"),
        (b"[]", 400, "invalid"),
        (b"null", 400, "invalid"),
        (b'{"messages": 3}', 400, "invalid"),
        (b'{"messages": [], "temperature": "hot"}', 400, "invalid"),
        (b'{"messages": [], "n": 2}', 400, "only_one"),
        (rb'{"messages": [{"role": "user", "content": "\ud800"}]}', 400, "invalid"),
        (b"[" + b"0," * (read_request.MAX_BODY_BYTES // 2) + b"0]", 413, "body_too_large"),
    ],
)
def test_an_invalid_body_is_refused_with_its_reason(body: bytes, status: int, code: str) -> None:
    async def test(engine: Engine, client: Any) -> None:
        response = await client.post(URL, content=body, headers=JSON)
        assert (response.status_code, code_of(response)) == (status, code)

    assert run(test).most_at_once == 0


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text/plain"}, 415, "not_declared_json"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "not_declared_json"),
        ({"Content-Type": "text/plain; a=application/json"}, 415, "not_declared_json"),
        ({}, 415, "not_declared_json"),
        ({**JSON, "Origin": "https://evil.example"}, 403, "foreign_origin"),
        ({**JSON, "Origin": "http://localhost.evil.example:8080"}, 403, "foreign_origin"),
        ({**JSON, "Origin": "null"}, 403, "foreign_origin"),
        (JSON, 200, ""),
        ({"Content-Type": "Application/JSON; charset=utf-8", "Origin": "http://127.0.0.1:8080"}, 200, ""),
    ],
)
def test_a_foreign_page_cannot_make_the_model_work(headers: dict[str, str], status: int, code: str) -> None:
    """What a browser sends for a page without asking the server first; the last two are the server's own page's."""

    async def test(engine: Engine, client: Any) -> None:
        engine.let.release()
        response = await client.post(URL, content=json.dumps(CHAT), headers=headers)
        assert response.status_code == status
        assert status == 200 or code_of(response) == code

    assert run(test).most_at_once == (1 if status == 200 else 0)


def test_a_body_without_a_length_is_read_no_further_than_allowed() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1 << 20
            yield b" " * (1 << 20)

    async def test(engine: Engine, client: Any) -> None:
        response = await client.post(URL, content=endless(), headers=JSON)
        assert (response.status_code, code_of(response)) == (413, "body_too_large")

    run(test)
    assert sent <= 2 * read_request.MAX_BODY_BYTES


def test_a_body_that_arrives_too_slowly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(read_request.read_request.__kwdefaults__, "body_seconds", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def test(engine: Engine, client: Any) -> None:
        response = await client.post(URL, content=slow(), headers=JSON)
        assert (response.status_code, code_of(response)) == (408, "body_too_slow")

    run(test)


def test_an_unknown_path_is_refused_in_the_same_form() -> None:
    async def test(engine: Engine, client: Any) -> None:
        for method, path, status in (("GET", "/v1/embeddings", 404), ("GET", URL, 405), ("POST", "/v1/models", 405)):
            response = await client.request(method, path)
            assert (response.status_code, code_of(response)) == (status, "no_such_thing")

    run(test)


def events(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_every_client_gets_a_complete_answer_in_its_turn_or_a_refusal_with_a_retry_time() -> None:
    """Two clients wait for the one that is answered; a fourth is refused."""

    async def test(engine: Engine, client: Any) -> None:
        asked = []
        for _ in range(4):
            asked.append(asyncio.create_task(client.post(URL, json={**CHAT, "stream": True})))
            await asyncio.sleep(0.05)
        refused = await asked.pop()
        assert (refused.status_code, code_of(refused)) == (503, "too_many")
        assert int(refused.headers["retry-after"]) >= 1
        for _ in range(9):
            engine.let.release()
        for response in await asyncio.gather(*asked):
            assert response.status_code == 200
            assert [event if event == "[DONE]" else event["number"] for event in events(response)] == [
                0,
                1,
                2,
                "[DONE]",
            ]

    engine = run(test)
    assert (engine.answered, engine.most_at_once, engine.left) == (3, 1, 0)


def test_an_answer_that_breaks_off_ends_with_an_error_event() -> None:
    async def test(engine: Engine, client: Any) -> None:
        engine.fails_after = 2
        for _ in range(3):
            engine.let.release()
        *pieces, last = events(await client.post(URL, json={**CHAT, "stream": True}))
        assert [piece["number"] for piece in pieces] == [0, 1]
        assert last["error"]["code"] == "model_ended"

    run(test)


def test_an_answer_that_fails_before_it_begins_has_the_status_of_its_failure() -> None:
    async def test(engine: Engine, client: Any) -> None:
        engine.fails_after = 0
        for stream in (True, False):
            engine.let.release()
            response = await client.post(URL, json={**CHAT, "stream": stream})
            assert (response.status_code, code_of(response)) == (500, "model_ended")

    run(test)


def test_a_client_that_leaves_while_waiting_does_not_delay_others() -> None:
    async def test(engine: Engine, client: Any) -> None:
        app = make_app({"a model": engine}, waiting=2)
        first, second, third = (_Client(app) for _ in range(3))
        await asyncio.sleep(0.05)
        second.leave.set()
        await asyncio.wait_for(second.done, 10)
        first.leave.set()
        await asyncio.wait_for(first.done, 10)
        assert engine.left == 1, "the one that was being answered"
        for _ in range(3):
            engine.let.release()
        await asyncio.wait_for(third.done, 10)
        assert b"[DONE]" in third.body

    run(test)


def test_a_client_that_leaves_before_the_model_has_taken_its_request_up_is_cancelled_too() -> None:
    """A confined process ignores a cancellation that comes before its request: it has the number of the one before."""

    async def test(engine: Engine, client: Any) -> None:
        engine.unheard = 1
        asked = _Client(make_app({"a model": engine}))
        await asyncio.sleep(0.05)
        asked.leave.set()
        await asyncio.wait_for(asked.done, 10)

    engine = run(test)
    assert (engine.answered, engine.left, engine.unheard) == (0, 1, 0)


def test_a_client_that_leaves_just_before_its_turn_is_not_answered() -> None:
    async def test(engine: Engine, client: Any) -> None:
        app = make_app({"a model": engine})
        first, second = _Client(app), _Client(app)
        await asyncio.sleep(0.05)
        second.leave.set()
        for _ in range(3):
            engine.let.release()
        await asyncio.wait_for(asyncio.gather(first.done, second.done), 10)

    engine = run(test)
    assert (engine.asked, engine.answered) == (1, 1)


class _Client:
    """Speaks ASGI itself, because an httpx client cannot disconnect."""

    def __init__(self, app: Any) -> None:
        self.leave = asyncio.Event()
        self.body = b""
        self._asked = False
        scope = {
            "type": "http",
            "method": "POST",
            "path": URL,
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        self.done = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": json.dumps({**CHAT, "stream": True}).encode()}
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.body += message.get("body", b"")


def test_a_request_is_answered_by_the_model_that_it_names() -> None:
    """The first one answers for a name that none has, as before there was a second."""

    async def test() -> list[int]:
        first, second = Engine(), Engine()
        transport = httpx.ASGITransport(make_app({"first": first, "second": second}))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            names = (await client.get("/v1/models")).json()["data"]
            assert [model["id"] for model in names] == ["first", "second"]
            for model in ("second", "unknown", "first"):
                (second if model == "second" else first).let.release()
                assert (await client.post(URL, json={**CHAT, "model": model})).status_code == 200
        return [first.answered, second.answered]

    assert asyncio.run(asyncio.wait_for(test(), 60)) == [2, 1]


def test_files_of_the_same_name_have_different_models_names() -> None:
    paths = [Path(f"/{folder}/m.gguf") for folder in ("a", "b", "b")]
    assert names_of(paths) == ["m", "b/m", "m 3"]
    assert names_of([Path("m.gguf"), Path("n.gguf")]) == ["m", "n"]
