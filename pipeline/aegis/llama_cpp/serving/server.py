"""Serves a GGUF over OpenAI's protocol, with llama-cpp-python's requests and answers, to this machine only.

llama-cpp-python's own server is not used: it breaks off an answer when the next request comes, crashes on a grammar
that it cannot parse, reads a body of any size, and answers any page that is open in a browser.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from aegis.errors import EnvironmentFault, IntegrityError
from aegis.llama_cpp.chat_template import refuse_unusable_templates
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.threads import default_threads

HOST = "127.0.0.1"
_NEEDED = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_CONNECTIONS = 256
_ENDING_SECONDS = 1


def serve(
    path: Path, *, port: int, context: int, threads: int | None = None, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve `path` at 127.0.0.1 until a signal ends it.

    Args:
        port: 0 for any that is free.
        context: maximum number of tokens of a request and its answer together.
        threads: number of threads; None for the physical cores.
        ready: called with the address, http://127.0.0.1:PORT/v1, when requests are accepted.

    Raises:
        EnvironmentFault: the server's packages are not installed, the port is taken, or memory is short.
        UsageError: the file does not exist.
        IntegrityError: the file is damaged or has no chat template.
        DataError: its chat template cannot be compiled in bounds.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        wanted = f"llama-cpp-python[server]=={metadata.version('llama-cpp-python')}"
        raise EnvironmentFault(
            "server.no_packages", missing=", ".join(missing), executable=sys.executable, wanted=wanted
        )
    with GgufFile(path) as file:
        if not file.metadata.get("tokenizer.chat_template"):
            raise IntegrityError("server.no_chat_template", path=path)
        refuse_unusable_templates(file.metadata)
    with _bound(port) as listener:
        import uvicorn

        from aegis.llama_cpp.serving.app import make_app
        from aegis.llama_cpp.serving.engine import Engine

        engine = Engine(path, context, threads or default_threads())
        try:
            engine.start()
            listener.listen()
            ready(f"http://{HOST}:{listener.getsockname()[1]}/v1")
            config = uvicorn.Config(
                make_app(engine, path.stem),
                log_level="warning",
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=_ENDING_SECONDS,
            )
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            engine.close()


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    if os.name != "nt":  # on Windows, it would allow two servers on the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise EnvironmentFault("server.port_taken", port=port, host=HOST, error=str(error)) from None
    return listener
