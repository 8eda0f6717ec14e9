"""Asks the model's process from an asynchronous server, and translates its errors to refusals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool

from aegis.errors import AegisError, EnvironmentFault
from aegis.llama_cpp.answering.read_request import Kind
from aegis.llama_cpp.answering.refusal import Refusal
from aegis.llama_cpp.confined import Confined, Ended, Failed, Message, Overdue, TooLarge
from aegis.llama_cpp.loading import refuse_fatal

_MODULE = "aegis.llama_cpp.answering._model_worker"
_LOAD_SECONDS = 1800.0
SILENT_SECONDS = 600.0
"""Time limit per piece: enough for a prompt as long as the context on a slow machine."""
ANSWER_BYTES = 2 << 30
"""Maximum memory of a request: a grammar can grow without end while it is used."""

_log = logging.getLogger(__name__)


class Engine:
    """One model, which answers under `name`; the caller must send one request at a time."""

    def __init__(self, path: Path, name: str, context: int, threads: int) -> None:
        self._path = path
        self._context = context
        setup = {"path": str(path.absolute()), "name": name, "context": context, "threads": threads}
        self._worker = Confined(_MODULE, Message(setup))
        self._is_closed = False

    def start(self) -> None:
        """Load the model.

        Raises:
            IntegrityError: its vocabulary ends llama.cpp.
            DataError: its chat template cannot be compiled in bounds.
            EnvironmentFault: llama.cpp cannot run it.
        """
        refuse_fatal(self._path)
        try:
            self._worker.start(_LOAD_SECONDS)
        except (Ended, Overdue, TooLarge, Failed) as error:
            raise EnvironmentFault(
                "server.cannot_run", path_name=self._path.name, context=self._context, text=str(error)
            ) from error

    def leave_off(self) -> None:
        """Cancel the rest of the current answer."""
        self._worker.leave_off()

    def close(self) -> None:
        """End the model's process; the current answer and later ones are refused."""
        self._is_closed = True
        self._worker.close()

    @property
    def pid(self) -> int | None:
        """The id of the model's process; None if there is none."""
        return self._worker.pid

    async def answers(self, kind: Kind, request: Any) -> AsyncGenerator[dict[str, Any], None]:
        """Yield the answer, or its pieces, in OpenAI's form.

        Raises:
            Refusal: there is no answer, or it broke off.
        """
        if self._is_closed:
            raise _closed()
        fields = {"kind": kind, "request": request.model_dump(mode="json", exclude_unset=True)}
        pieces = self._worker.stream(fields, seconds=SILENT_SECONDS, memory_bytes=ANSWER_BYTES)
        try:
            while (piece := await run_in_threadpool(_next, pieces)) is not None:
                yield piece.fields
        except (AegisError, Overdue, TooLarge, Ended, Failed) as error:
            raise self._refusal(error, request) from error
        finally:
            # the next request must wait until the model has stopped
            await asyncio.shield(run_in_threadpool(_close, pieces))

    def _refusal(self, error: Exception, request: Any) -> Refusal:
        if self._is_closed:
            return _closed()
        if isinstance(error, AegisError):
            return Refusal(400, "serving.unusable", error=self._without_path(str(error)))
        if isinstance(error, Failed) and "exceed context window" in str(error):
            return Refusal(400, "serving.context_length_exceeded", error=str(error), context=self._context)
        if isinstance(error, Failed):
            _log.warning("a request failed: %s", error.trace)
            return Refusal(400, "serving.unusable", error=self._without_path(f"{error.kind}: {error}"))
        _log.warning("the model's process: %s: %s", type(error).__name__, error)
        # only these fields of a request are programs
        constrained = any(getattr(request, name, None) for name in ("grammar", "response_format", "tools", "functions"))
        return Refusal(400, "serving.grammar_too_much") if constrained else Refusal(500, "serving.model_ended")

    def _without_path(self, text: str) -> str:
        return text.replace(str(self._path.absolute()), self._path.name).replace(str(self._path), self._path.name)


def _closed() -> Refusal:
    return Refusal(503, "serving.closed")


def _next(pieces: Iterator[Message]) -> Message | None:
    return next(pieces, None)


def _close(pieces: Any) -> None:
    with suppress(AegisError, Overdue, TooLarge, Ended, Failed):
        pieces.close()
