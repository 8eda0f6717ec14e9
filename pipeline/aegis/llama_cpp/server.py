"""Serve a GGUF over OpenAI's protocol, to this machine only: llama-cpp-python's own server.

Three things are not left to that server's defaults. It would read its settings, an API key and a file to load among
them, out of the environment; guess a chat format by likeness and add no begin token; and answer to any page that a
browser has open, for it allows every origin and every host name.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

from aegis.errors import EnvironmentFault, IntegrityError
from aegis.llama_cpp._log import captured_log
from aegis.llama_cpp.amx import keep_from_amx
from aegis.llama_cpp.chat_template import ChatTemplate
from aegis.llama_cpp.gguf_file import GgufFile
from aegis.llama_cpp.threads import default_threads

HOST = "127.0.0.1"
_NEEDED = ("fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings")
_FORMAT = "the file's own"
_HERE = r"https?://(localhost|127\.0\.0\.1)(:\d+)?"


def serve(
    path: Path, *, port: int, context: int, threads: int | None = None, ready: Callable[[str], None] = lambda _: None
) -> None:
    """Serve `path` at 127.0.0.1 until a signal ends it.

    Args:
        port: 0 for any that is free.
        context: tokens that all of a request and its answer may have.
        threads: the physical cores if None.
        ready: called with the address, http://127.0.0.1:PORT/v1, when requests are taken.

    Raises:
        EnvironmentFault: the server's packages are not installed, the port is taken, or memory is short.
        UsageError: no such file.
        IntegrityError: it is damaged, or has no chat template.
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        wanted = f"llama-cpp-python[server]=={metadata.version('llama-cpp-python')}"
        raise EnvironmentFault(
            "server.no_packages", missing=", ".join(missing), executable=sys.executable, wanted=wanted
        )
    with GgufFile(path) as file:
        if not file.metadata.get("tokenizer.chat_template"):
            raise IntegrityError("server.no_chat_template", path=path)
    with _bound(port) as listener:
        app = _app(path, context, threads or default_threads())
        import uvicorn

        listener.listen()
        ready(f"http://{HOST}:{listener.getsockname()[1]}/v1")
        with redirect_stdout(sys.stderr):  # where the server prints who went away; stdout is for results
            uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _bound(port: int) -> socket.socket:
    listener = socket.socket()
    if os.name != "nt":  # there it would let two servers have the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise EnvironmentFault("server.port_taken", port=port, host=HOST, error=str(error)) from None
    return listener


def _app(path: Path, context: int, threads: int) -> Any:
    from llama_cpp.llama_chat_format import (
        chat_formatter_to_chat_completion_handler,
        register_chat_completion_handler,
    )
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    @register_chat_completion_handler(_FORMAT)  # type: ignore[untyped-decorator]
    def answer(*, llama: Any, **request: Any) -> Any:
        named = {**request, "model": request.get("model") or path.stem}  # it would give the path on this disk
        return chat_formatter_to_chat_completion_handler(ChatTemplate(llama))(llama=llama, **named)

    os.environ.pop("CONFIG_FILE", None)
    nobodys = {"_env_prefix": "AEGIS_SERVER_READS_NO_ENVIRONMENT_"}
    model = ModelSettings(
        model=os.fspath(path.absolute()),
        model_alias=path.stem,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        logits_all=False,
        chat_format=_FORMAT,
        verbose=False,
        **nobodys,
    )
    captured_log().clear()
    keep_from_amx()
    try:
        app = create_app(server_settings=ServerSettings(**nobodys), model_settings=[model])
    except ValueError as error:
        text = "\n".join((str(error), *list(captured_log())[-10:]))
        raise EnvironmentFault("server.cannot_run", path_name=path.name, context=context, text=text) from error
    app.user_middleware = [
        Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"]),
        Middleware(CORSMiddleware, allow_origin_regex=_HERE, allow_methods=["*"], allow_headers=["*"]),
        *(middleware for middleware in app.user_middleware if middleware.cls is not CORSMiddleware),
    ]
    return app
