"""Have 1, 2, 8 and 16 clients stream from `aegis serve` at once, and count how their answers end.

    PYTHONPATH=pipeline:. python tools/sweep_serve.py FILE.gguf [--clients 1,2,8,16] [--seconds 120] [--control]

Every answer must be whole (a finish_reason, then [DONE]) or refused with a reason; `--control` asks llama-cpp-python's
own server, as it is set by default, which cuts answers off. In the middle the model's process is killed once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

ROOT = Path(__file__).parents[1]
HOST = "127.0.0.1"
QUESTION = {"role": "user", "content": "先生は何をする人ですか。"}


class Server(NamedTuple):
    """One that takes requests."""

    port: int
    process: subprocess.Popen[str]

    def kill_model(self) -> None:
        """Kill the process that holds the model, as a fault of llama.cpp's would end it."""
        model = max(psutil.Process(self.process.pid).children(), key=lambda child: child.memory_info().rss)
        model.kill()


@contextmanager
def serving(gguf: Path, *flags: object) -> Iterator[Server]:
    """`aegis serve` in a process of its own, on a free port."""
    command = [sys.executable, "-m", "aegis", "--json", "serve", "--gguf", str(gguf), "--port", "0", *map(str, flags)]
    with _process(command) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Server(int(json.loads(line)["report"]["url"].split(":")[2].partition("/")[0]), process)


@contextmanager
def control(gguf: Path, port: int) -> Iterator[Server]:
    """llama-cpp-python's own server, as it is set by default."""
    settings = {"--model": gguf, "--port": port, "--n_ctx": 256, "--n_threads": 1, "--n_threads_batch": 1}
    command = [sys.executable, "-m", "llama_cpp.server", *(str(word) for pair in settings.items() for word in pair)]
    with _process(command) as process:
        server = Server(port, process)
        while status(server) != 200:
            time.sleep(0.2)
        yield server


@contextmanager
def _process(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(ROOT / "pipeline"), str(ROOT), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUTF8": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def status(server: Server) -> int:
    """What a question for the models is answered with; 0 if nobody answers."""
    with closing(http.client.HTTPConnection(HOST, server.port, timeout=30)) as connection:
        try:
            connection.request("GET", "/v1/models")
            return connection.getresponse().status
        except OSError:
            return 0


def ask(server: Server, max_tokens: int, **more: object) -> str:
    """Stream one answer, and say how it ended: whole, refused, cut off or broken, and why."""
    body = {"messages": [QUESTION], "stream": True, "max_tokens": max_tokens, "temperature": 1.0, **more}
    with closing(http.client.HTTPConnection(HOST, server.port, timeout=300)) as connection:
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
        except http.client.IncompleteRead:
            return "cut off"
        except (OSError, http.client.HTTPException) as error:
            return f"broken: {type(error).__name__}"
    if response.status != 200:
        return f"refused: {response.status} {json.loads(text)['error']['code']}"
    events = [
        event.strip().removeprefix("data: ") for event in text.replace("\r\n", "\n").split("\n\n") if event.strip()
    ]
    pieces = [json.loads(event) for event in events if event.startswith("{")]
    if pieces and "error" in pieces[-1]:
        return f"refused: {pieces[-1]['error']['code']}"
    finished = any(choice["finish_reason"] for piece in pieces for choice in piece["choices"])
    return "whole" if finished and events[-1] == "[DONE]" else "cut off"


def load(
    server: Server, clients: int, *, seconds: float = float("inf"), answers: int = sys.maxsize, max_tokens: int = 24
) -> Counter[str]:
    """Have clients ask again and again, until the time is over or each has asked so often; count the ends."""
    until, ends = time.monotonic() + seconds, Counter[str]()

    def client() -> None:
        asked = 0
        while asked < answers and time.monotonic() < until:
            ends[ask(server, max_tokens)] += 1
            asked += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def main() -> int:
    """Run all, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--clients", default="1,2,8,16", help="how many at once, each a line")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--control", action="store_true", help="llama-cpp-python's own server instead")
    arguments = parser.parse_args()
    wrong = 0
    for clients in (int(text) for text in arguments.clients.split(",")):
        if arguments.control:
            with control(arguments.gguf, 8399) as server:
                ends = load(server, clients, seconds=arguments.seconds)
        else:
            with serving(arguments.gguf, "--context", 256) as server:
                killer = threading.Timer(arguments.seconds / 2, server.kill_model)
                killer.start()
                ends = load(server, clients, seconds=arguments.seconds)
                killer.cancel()
        wrong += sum(count for end, count in ends.items() if end.startswith(("cut", "broken")))
        print(f"{clients:>3} clients, {arguments.seconds:.0f} s: {dict(sorted(ends.items()))}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
