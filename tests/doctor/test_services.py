"""Tests that the Hub's token is never shown, and that Ollama is found over HTTP, with a server in its place."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
import pytest

from aegis.doctor import services
from aegis.doctor.finding import Finding

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


def only(findings: list[Finding]) -> Finding:
    (found,) = findings
    return found


@pytest.mark.parametrize(("token", "shown"), [(TOKEN, "a token is set"), (None, "no token")])
def test_the_presence_of_a_token_is_reported_and_not_its_value(
    monkeypatch: pytest.MonkeyPatch, token: str | None, shown: str
) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    found = only(services.hub())
    assert (found.state, shown in found.detail, TOKEN in str(found)) == ("ok", True, False)


def test_offline_mode_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    found = only(services.hub())
    assert (found.state, "offline mode is on" in found.detail, "HF_HUB_OFFLINE" in found.cure) == ("warn", True, True)


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(services, "_TIMEOUT_S", 30.0)  # on a busy machine a second may be too little

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param if self.path == "/api/version" else b"")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("server", [b'{"version":"0.33.1"}'], indirect=True)
def test_an_ollama_that_answers_is_reported(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At OLLAMA_HOST, in the forms that Ollama takes; a proxy is not asked."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for given in (server, f"http://{server}", server.replace("127.0.0.1", "0.0.0.0")):
        monkeypatch.setenv("OLLAMA_HOST", given)
        assert only(services.ollama()) == Finding("ollama", "ok", f"0.33.1 answers at http://{server}")


@pytest.mark.parametrize("server", [b"<html>", b"[]", b'{"other":1}'], indirect=True)
def test_another_server_at_ollamas_port_is_not_taken_for_it(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/ollama")
    found = only(services.ollama())
    assert (found.state, found.cure) == ("warn", "ollama serve")


def test_a_missing_ollama_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert only(services.ollama()).state == "ok"


@pytest.mark.parametrize("given", ["localhost:99999", "localhost:many", "http://[::1"])
def test_an_address_of_ollama_that_is_none_is_named_and_not_a_failure(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", given)
    found = only(services.ollama())
    assert found.state == "warn"
    assert "OLLAMA_HOST" in found.detail
