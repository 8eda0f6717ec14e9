"""A stand-in for the Hub on 127.0.0.1 that serves one folder under many names, each with its own fault."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model.safetensors"


class Hub(ThreadingHTTPServer):
    """Serves `folder` as org/FAULT: whole, cut, busy, throttled, longer, spoiled, gated, private, portal, down.

    Attributes:
        asked: (repository, file) → number of requests for its bytes.
        tokens: every received Authorization header.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.asked: Counter[tuple[str, str]] = Counter()
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """Run a Hub in a thread."""
    hub = Hub(folder)
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join(5)


def _entry(path: Path) -> dict[str, Any]:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    size = path.stat().st_size
    return {
        "type": "file",
        "path": path.name,
        "size": size,
        "oid": sha256[:40],
        "lfs": {"oid": sha256, "size": size, "pointerSize": 134},
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        if token := self.headers.get("Authorization"):
            self.server.tokens.add(token)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "portal" in parts:
            self._answer(200, b"<html><body>Please log in to this hotel's network.</body></html>", {})
        elif parts[:2] == ["api", "models"]:
            self._about(parts[3], tree=parts[4] == "tree")
        elif len(parts) == 5 and parts[2] == "resolve":
            self._file(parts[1], parts[4], body)
        else:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _about(self, fault: str, *, tree: bool) -> None:
        if fault == "gated":
            self._answer(403, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"})
        elif fault == "private":
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Invalid username or password."})
        elif fault == "down":
            self._answer(503, b"", {})
        else:
            entries = [_entry(path) for path in sorted(self.server.folder.iterdir())]
            siblings = [{"rfilename": entry["path"]} for entry in entries]
            about = entries if tree else {"id": f"org/{fault}", "sha": COMMIT, "siblings": siblings}
            self._answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

    def _file(self, fault: str, name: str, body: bool) -> None:
        path = self.server.folder / name
        if not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = path.read_bytes()
        headers = {
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "Accept-Ranges": "bytes",
        }
        if not body:
            return self._answer(200, content, headers)
        self.server.asked[fault, name] += 1
        times = self.server.asked[fault, name]
        if name != WEIGHTS:
            return self._answer(200, content, headers)
        if fault == "spoiled" and times == 1:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if fault == "busy" and times <= 2:
            return self._answer(503, b"", {})
        if fault == "throttled" and times <= 2:
            return self._answer(429, b"", {"Retry-After": "0"})
        start = 0
        asked_range = self.headers.get("Range")
        if asked_range:
            start = int(asked_range.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "longer":
            headers["Content-Length"] = str(len(content) - start + 1000)
        if fault in ("cut", "dead") and (times == 1 or fault == "dead"):
            headers["Content-Length"] = str(len(content) - start)
            return self._answer(206 if start else 200, content[start : start + (len(content) - start) // 2], headers)
        return self._answer(206 if start else 200, content[start:], headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        announced = int({"Content-Length": str(len(content)), **headers}["Content-Length"])
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        if announced != len(content):
            self.close_connection = True
