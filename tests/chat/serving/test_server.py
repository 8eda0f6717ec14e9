"""Tests of the server: OpenAI's protocol with its own client, the file's own template, and this machine only."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from aegis.chat.serving import serve
from aegis.errors import EnvironmentFault, IntegrityError, UsageError
from aegis.llama_cpp import Runtime, convert
from tests.llama_cpp.conftest import MakeModel

from .conftest import require_packages

ROOT = Path(__file__).parents[3]
CONTEXT = 256  # llama.cpp rounds up to a multiple of it
MESSAGES = [{"role": "system", "content": "短く。"}, {"role": "user", "content": "先生は何をする人ですか。"}]


@dataclass(frozen=True)
class Server:
    url: str
    port: int
    process: subprocess.Popen[str]


@pytest.fixture(scope="module", autouse=True)
def _has_its_packages() -> None:
    require_packages("fastapi", "uvicorn", "sse_starlette", "openai")


@contextmanager
def serving(gguf: Path, *flags: object, **environment: str) -> Iterator[Server]:
    """Run `aegis serve` in a separate process on a free port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aegis", "--json", "serve", "--gguf", str(gguf), "--port", "0", *map(str, flags)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *filter(None, sys.path)]),
            "PYTHONUTF8": "1",
            **environment,
        },
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        url = json.loads(line)["report"]["url"]
        yield Server(url, int(url.split(":")[2].partition("/")[0]), process)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(gguf: Path) -> Iterator[Server]:
    # what the server of the bindings would read out of the environment if it were let
    misleading = {"API_KEY": "x", "MODEL": "other.gguf", "HOST": "0.0.0.0", "CONFIG_FILE": "x.yaml", "CHAT_FORMAT": "x"}
    with serving(gguf, "--context", CONTEXT, "--threads", 1, **misleading) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    import openai

    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def answer(gguf: Path) -> str:
    """Return llama.cpp's own answer through the file's template, without the first word's space."""
    with Runtime(gguf, n_ctx=CONTEXT, threads=1) as runtime:
        return "".join(runtime.chat(MESSAGES, 12, temperature=0)).lstrip()


def ask(client: Any, **settings: Any) -> Any:
    settings = {"max_tokens": 12, "temperature": 0, **settings}
    return client.chat.completions.create(model="any", messages=MESSAGES, **settings)


def test_a_chat_request_is_answered(client: Any, answer: str, gguf: Path) -> None:
    """The same words as without a server, so the same template and the same begin token; counted alike."""
    reply = ask(client)
    assert reply.choices[0].message.content == answer != ""
    with Runtime(gguf, vocab_only=True) as runtime:
        assert reply.usage.prompt_tokens == len(runtime.chat_tokens(MESSAGES))


def test_a_chat_request_is_answered_piece_by_piece(client: Any, answer: str) -> None:
    pieces = [chunk.choices[0].delta.content or "" for chunk in ask(client, stream=True)]
    assert "".join(pieces) == answer
    assert sum(map(bool, pieces)) > 1


def test_a_completion_request_is_answered(client: Any, gguf: Path) -> None:
    settings: Any = {"model": "any", "prompt": "いぬは", "max_tokens": 8, "temperature": 0}
    with Runtime(gguf, n_ctx=CONTEXT, threads=1) as runtime:
        wanted = "".join(runtime.complete("いぬは", 8, temperature=0))
    whole = client.completions.create(**settings)
    assert whole.choices[0].text == wanted != ""
    pieces = client.completions.create(**settings, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == wanted


def test_a_stream_ends_with_its_usage_if_it_is_wanted(client: Any) -> None:
    """The counts of the same answer in one piece; without the option, no piece has them."""
    *pieces, last = ask(client, stream=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], ask(client).usage)
    assert [piece.usage for piece in pieces] == [None] * len(pieces)
    assert all(piece.usage is None and piece.choices for piece in ask(client, stream=True))


SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False}


def tool(parameters: Any) -> Any:
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


def test_an_answer_has_the_structure_that_was_wanted(client: Any) -> None:
    named = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    whole = ask(client, response_format=named, max_tokens=200)
    assert json.loads(whole.choices[0].message.content) == {"a": "x"}
    (call,) = ask(client, tools=[tool(SCHEMA)], tool_choice="required", max_tokens=200).choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("f", {"a": "x"})


@pytest.mark.parametrize("schema", [{"$ref": "#/nope"}, {"type": "nonsense"}, {"type": "string", "pattern": "a"}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_structure_that_cannot_be_kept_is_refused(client: Any, schema: Any, stream: bool) -> None:
    """The bindings would let the model write any JSON instead."""
    import openai

    chosen = {"type": "function", "function": {"name": "f"}}
    for wanted in (
        {"response_format": {"type": "json_object", "schema": schema}},
        {"tools": [tool(schema)], "tool_choice": chosen},
    ):
        with pytest.raises(openai.BadRequestError, match="JSON schema"):
            ask(client, stream=stream, **wanted)


def test_a_tool_call_without_content_is_read_back(client: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "3"}
    reply = client.chat.completions.create(
        model="any", messages=[*MESSAGES, said, result], max_tokens=4, temperature=0, frequency_penalty=None
    )
    assert reply.choices[0].finish_reason in ("length", "stop")


def test_an_empty_prompt_is_refused_by_name(client: Any) -> None:
    import openai

    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="nothing to continue"):
            client.completions.create(model="any", prompt="", max_tokens=3, stream=stream)


def test_answers_name_the_model_without_its_path(client: Any, gguf: Path) -> None:
    assert [model.id for model in client.models.list()] == [gguf.stem]


def test_the_model_has_the_configured_context(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=str(CONTEXT)):
        client.completions.create(model="any", prompt="桃 " * 300, max_tokens=1)


def request(server: Server, **headers: str) -> tuple[int, str | None]:
    """Return the status, and the origin that may read the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    with closing(connection):
        connection.request("GET", "/v1/models", headers=headers)
        response = connection.getresponse()
        response.read()
        return response.status, response.headers.get("access-control-allow-origin")


def other_addresses() -> list[str]:
    """Return addresses of this machine other than 127.0.0.1."""
    of_interfaces = (address for addresses in psutil.net_if_addrs().values() for address in addresses)
    found = {str(address.address) for address in of_interfaces if address.family == socket.AF_INET}
    return sorted((found | {"127.0.0.2"}) - {"127.0.0.1"})


def test_other_machines_are_refused(server: Server) -> None:
    """The server listens at 127.0.0.1 and at no other address of this machine."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60):
        pass
    for address in other_addresses():
        with socket.socket() as asking:
            asking.settimeout(5)
            assert asking.connect_ex((address, server.port)) != 0, address


@pytest.mark.parametrize("name", ["evil.example", "evil.example:8080", "0.0.0.0", "[::1]"])
def test_other_host_names_are_refused(server: Server, name: str) -> None:
    """A foreign name may point to 127.0.0.1 (DNS rebinding)."""
    assert request(server, Host=name)[0] == 400
    assert request(server, Host=f"localhost:{server.port}")[0] == 200


def test_pages_from_other_origins_may_not_read_answers(server: Server) -> None:
    assert request(server, Origin="https://evil.example")[1] is None
    assert request(server, Origin="http://localhost.evil.example")[1] is None
    assert request(server, Origin="http://localhost:3000")[1] == "http://localhost:3000"


def test_a_begin_token_that_the_template_does_not_write_is_added(tmp_path: Path, make_model: MakeModel) -> None:
    """The file's flag adds one, as in llama-server: a prompt of one token more."""
    import openai

    folder = make_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "add_bos_token": True}), encoding="utf-8")
    convert(folder, tmp_path / "bos.gguf", model_name="tiny phi-3")
    with Runtime(tmp_path / "bos.gguf", vocab_only=True) as runtime:
        tokens = runtime.chat_tokens(MESSAGES)
        assert tokens[0] == runtime.tokenize("", add_bos=True)[0]
    with (
        serving(tmp_path / "bos.gguf", "--threads", 1) as server,
        openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        assert ask(client).usage.prompt_tokens == len(tokens)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")
def test_ctrl_c_ends_the_server_and_is_no_failure(gguf: Path) -> None:
    with serving(gguf, "--threads", 1) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert server.process.stderr is not None
        printed = server.process.stderr.read()
        assert not re.search("Traceback|interrupted", printed), printed


@pytest.mark.parametrize(("flags", "lines"), [((), 2), (("--quiet",), 0)])
def test_requests_are_logged_on_stderr_alone(gguf: Path, flags: tuple[str, ...], lines: int) -> None:
    """A program that reads the address from --json reads no further, and a full pipe would stop the server."""
    with serving(gguf, "--threads", 1, *flags) as server:
        for _ in range(2):
            request(server)
        server.process.terminate()
        out, err = server.process.communicate()
    assert out == ""
    assert err.count("GET /v1/models  200") == lines


def test_a_taken_port_is_an_error_with_a_fix(gguf: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EnvironmentFault, match=str(port)):
            serve(gguf, port=port, context=CONTEXT)


def test_a_file_without_a_chat_template_is_not_served(tmp_path: Path, make_model: MakeModel) -> None:
    folder = make_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    del config["chat_template"]
    path.write_text(json.dumps(config), encoding="utf-8")
    convert(folder, tmp_path / "plain.gguf", model_name="tiny phi-3", vocab_only=True)
    with pytest.raises(IntegrityError, match="no chat template"):
        serve(tmp_path / "plain.gguf", port=0, context=CONTEXT)
    with pytest.raises(UsageError):
        serve(tmp_path / "absent.gguf", port=0, context=CONTEXT)
