"""A stand-in for the Hub on 127.0.0.1: the part of its interface that an upload needs, with a record of requests."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories and their files.

    Attributes:
        refuses: a path prefix → the status it is answered with.
        adds: text that is added to every refusal.
        answers: a path prefix → the bytes it is answered with instead.
        repos: name → whether it is private.
        files: repository → path → content.
        seen: method, path and whether the right token came, of every request.
    """

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.refuses: dict[str, int] = {}
        self.adds = ""
        self.answers: dict[str, bytes] = {}
        self.repos: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.seen: list[tuple[str, str, bool]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_running(token: str) -> Iterator[Hub]:
    with Hub(token) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_PUT(self) -> None:
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == self.path.rpartition("/")[2]
        self.server.large[self.path.rpartition("/")[2]] = content
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        knows = self.headers.get("authorization") == f"Bearer {self.server.token}"
        self.server.seen.append(("POST", self.path, knows))
        for prefix, status in self.server.refuses.items():
            if self.path.startswith(prefix):
                text = f"refused to {self.headers.get('authorization')}{self.server.adds}"
                return self._answer({"error": text}, status)
        for prefix, answer in self.server.answers.items():
            if self.path.startswith(prefix):
                return self._send(answer, 200)
        if self.path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if not knows:
            return self._answer({"error": "who are you?"}, 401)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if "/preupload/" in self.path:
            return self._preupload(json.loads(body))
        if self.path.endswith("/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if "/commit/" in self.path:
            return self._commit(body.decode().splitlines())
        return self._answer({"error": "no such thing"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        there = name in self.server.repos
        if not there:
            self.server.repos[name] = bool(asked.get("private", asked.get("visibility") == "private"))
            self.server.files[name] = {}
        self._answer({"url": f"{self.server.url}/{name}"}, 409 if there else 200)

    def _preupload(self, asked: dict[str, Any]) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".gguf", ".safetensors")) else "regular",
                "shouldIgnore": False,
            }
            for file in asked["files"]
        ]
        self._answer({"files": files})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for item in asked["objects"]:
            there = item["oid"] in self.server.large
            action = {} if there else {"actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}}
            objects.append({"oid": item["oid"], "size": item["size"], **action})
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, lines: list[str]) -> None:
        repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                assert value["encoding"] == "base64"
                self.server.files[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[repo][value["path"]] = self.server.large[value["oid"]]
        self._answer({"commitUrl": f"{self.server.url}/{repo}/commit/{'c' * 40}", "commitOid": "c" * 40})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _answer(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status)

    def _send(self, data: bytes, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
