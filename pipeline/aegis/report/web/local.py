"""Serves an application at 127.0.0.1, to this machine only: until a signal ends it, or beside other work."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import TYPE_CHECKING, Any

from aegis import progress
from aegis.errors import EnvironmentFault

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.types import ASGIApp

HOST = "127.0.0.1"
PACKAGES = ("starlette", "uvicorn")
WATCH_PORT = 8081
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
    """Bind a port of 127.0.0.1, 0 for any that is free; connections wait until they are accepted.

    Raises:
        EnvironmentFault: the port is taken.
    """
    listener = socket.socket()
    if os.name != "nt":  # on Windows, it would allow two servers on the same port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # at once: until one of them listens, several servers can bind the same port
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
    app: ASGIApp,
    listener: socket.socket,
    ready: Callable[[str], None],
    log: Callable[[str], None] = progress.say,
    ending: Callable[[], None] = lambda: None,
) -> None:
    """Serve until Ctrl-C, which is the way to end it and no failure, or another signal.

    Args:
        ready: called with the address, http://127.0.0.1:PORT.
        log: called with a line per request.
        ending: called after the signal, before the last requests are waited for; it may shorten them.
    """
    with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has closed its connections
        ready(_address(listener))
        _server(app, log, ending).run(sockets=[listener])


@contextmanager
def beside(app: ASGIApp, port: int = WATCH_PORT, log: Callable[[str], None] = lambda _: None) -> Iterator[str]:
    """Serve in a thread while the block runs, at this port or, if it is taken, at any free one; yield the address."""
    try:
        listener = bound(port)
    except EnvironmentFault:
        listener = bound(0)
    with listener:
        server = _server(app, log)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield _address(listener)
        finally:
            server.should_exit = True
            thread.join()


def _address(listener: socket.socket) -> str:
    return f"http://{HOST}:{listener.getsockname()[1]}"


def _server(app: ASGIApp, log: Callable[[str], None], ending: Callable[[], None] = lambda: None) -> Any:
    import uvicorn

    from aegis.report.web.request_log import RequestLog

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        RequestLog(app, log),
        log_level="warning",
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_ENDING_SECONDS,
    )
    return Server(config)
