"""Tests of Ctrl-C while a server answers: every client gets the reason, and the server ends as without clients."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import wait_until

from .conftest import require_packages

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a single process there")


@pytest.fixture
def process(gguf: Path) -> Iterator[subprocess.Popen[str]]:
    require_packages("fastapi", "uvicorn", "sse_starlette")
    paths = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, str(Path(__file__).with_name("slow_model.py"))]
    with subprocess.Popen(
        [*command, "--json", "serve", "--gguf", str(gguf), "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1"},
    ) as process:
        yield process
        process.kill()


class Client:
    """Asks in a thread of its own, and keeps the status and the text of the answer."""

    def __init__(self, port: int, **fields: Any) -> None:
        self.status, self.text = 0, ""
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"messages": [{"role": "user", "content": "x"}], **fields}
        self._connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        response = self._connection.getresponse()
        self.status = response.status
        while line := response.readline():
            self.text += line.decode()

    def end(self) -> tuple[int, Any]:
        """Return the status and the error, which a stream has in its last event."""
        self._thread.join(30)
        self._connection.close()
        return self.status, json.loads(self.text.strip().rpartition("\n")[2].removeprefix("data: "))["error"]["code"]


def test_ctrl_c_during_an_answer_gives_every_client_the_reason(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    port = int(json.loads(process.stdout.readline())["report"]["url"].split(":")[2].partition("/")[0])
    answered = Client(port, stream=True)
    wait_until(lambda: answered.text.count("data") > 2, limit_s=30)
    waiting = [Client(port, stream=stream) for stream in (True, False)]
    half = http.client.HTTPConnection("127.0.0.1", port)
    half.putrequest("POST", "/v1/chat/completions")
    for header in (("Content-Type", "application/json"), ("Content-Length", "100")):
        half.putheader(*header)
    half.endheaders(b"{")
    wait_until(lambda: answered.text.count("data") > 6, limit_s=30)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in printed) == (0, False), printed
    assert answered.end() == (200, "closed")
    assert [client.end() for client in waiting] == [(503, "closed")] * 2
    assert half.getresponse().status == 503
    half.close()
