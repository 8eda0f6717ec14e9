"""Serves an application at 127.0.0.1, to this machine only, until a signal ends it."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING

from aegis import progress
from aegis.errors import EnvironmentFault

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

HOST = "127.0.0.1"
PACKAGES = ("starlette", "uvicorn")
_CONNECTIONS = 256
_ENDING_SECONDS = 1


def require_packages(names: Sequence[str]) -> None:
    """Refuse to serve without these packages, which are those of the `serve` extra.

    Raises:
        EnvironmentFault: one is not installed.
    """
    if missing := [name for name in names if importlib.util.find_spec(name) is None]:
        wanted = f"llama-cpp-python[server]=={metadata.version('llama-cpp-python')}"
        raise EnvironmentFault(
            "server.no_packages", missing=", ".join(missing), executable=sys.executable, wanted=wanted
        )


def bound(port: int) -> socket.socket:
    """Bind a port of 127.0.0.1, 0 for any that is free.

    Raises:
        EnvironmentFault: the port is taken.
    """
    listener = socket.socket()
    if os.name != "nt":  # on Windows, it would allow two servers on the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise EnvironmentFault("server.port_taken", port=port, host=HOST, error=str(error)) from None
    return listener


def own_host_only() -> Middleware:
    """The middleware that refuses other host names: a foreign name may point to 127.0.0.1 (DNS rebinding)."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])


def run(
    app: ASGIApp, listener: socket.socket, ready: Callable[[str], None], log: Callable[[str], None] = progress.say
) -> None:
    """Serve until a signal ends it.

    Args:
        ready: called with the address, http://127.0.0.1:PORT.
        log: called with a line per request.
    """
    import uvicorn

    from aegis.report.web.request_log import RequestLog

    listener.listen()
    ready(f"http://{HOST}:{listener.getsockname()[1]}")
    config = uvicorn.Config(
        RequestLog(app, log),
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_ENDING_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listener])
