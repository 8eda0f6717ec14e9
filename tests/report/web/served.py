"""Serves an application to a real browser for the time of a test, as `aegis` does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aegis import progress
from aegis.report.web import local
from aegis.report.web.request_log import RequestLog


@contextmanager
def served(app: Any) -> Iterator[str]:
    """Return the address of the running application."""
    import uvicorn

    with local.bound(0) as listener:
        listener.listen()
        server = uvicorn.Server(
            uvicorn.Config(RequestLog(app, progress.say), log_level="warning", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{local.HOST}:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
