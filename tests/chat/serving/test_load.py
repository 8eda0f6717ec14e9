"""Tests with a small version of `tools/sweep_serve.py`: many clients, and every answer complete or refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.sweep_serve import Server, ask, control, load, serving, status

from .conftest import require_packages

ANSWERS = 48


@pytest.fixture(scope="module", autouse=True)
def _has_its_packages() -> None:
    require_packages("fastapi", "uvicorn", "sse_starlette")


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[Server]:
    with serving(gguf, "--context", 256, "--threads", 1) as server:
        yield server


@pytest.mark.parametrize("clients", [1, 2, 8, 16])
def test_every_streamed_answer_is_complete_with_many_clients(server: Server, clients: int) -> None:
    assert load(server, clients, answers=ANSWERS // clients) == {"whole": ANSWERS // clients * clients}


def test_more_clients_than_may_wait_are_refused(server: Server) -> None:
    ends = load(server, 48, answers=1)
    assert set(ends) == {"whole", "refused: 503 too_many"}
    assert ends["whole"] >= 33


def test_the_bindings_own_server_cuts_answers_off(gguf: Path) -> None:
    """What this counts is there to be counted."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with control(gguf, port) as server:
        assert load(server, 4, answers=12)["cut off"] > 0


def test_when_the_models_process_is_killed_the_next_request_is_answered(server: Server) -> None:
    for _ in range(3):
        server.kill_model()
        assert ask(server, 8) == "whole"


@pytest.mark.parametrize(
    ("grammar", "end"),
    [
        ("root ::= root root", "refused: 400 unusable"),
        ("root ::= " + "(" * 4 + '"a"' + "{0,1000})" * 4, "refused: 400 unusable"),
        ("nonsense", "refused: 400 unusable"),
        ('root ::= "a"', "whole"),
    ],
)
def test_a_grammar_that_crashes_llama_cpp_is_refused_and_the_next_request_is_answered(
    server: Server, grammar: str, end: str
) -> None:
    assert ask(server, 8, grammar=grammar) == end
    assert ask(server, 8) == "whole"
    assert status(server) == 200


def test_a_schema_whose_grammar_takes_all_memory_does_not_end_the_service(server: Server) -> None:
    text = {"type": "string", "minLength": 1000, "maxLength": 100_000}
    schema = {"type": "object", "properties": {"a": text}, "required": ["a"]}
    end = ask(server, 8, response_format={"type": "json_object", "schema": schema})
    assert end.startswith("refused: 400")
    assert ask(server, 8) == "whole"
