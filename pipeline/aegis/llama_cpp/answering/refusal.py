"""Refusals: the HTTP status and the error, in OpenAI's form, for a client that gets no answer."""

from __future__ import annotations

from typing import Any

from aegis.messages import phrase


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        key: key of the message for people; its last part is the error code for programs.
        retry_after: seconds after which the client may try again.
    """

    def __init__(self, status: int, key: str, *, retry_after: int | None = None, **values: object) -> None:
        super().__init__(key)
        self.status = status
        self.headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        code = key.rpartition(".")[2]
        kind = "invalid_request_error" if status < 500 else "server_error"
        message = phrase(key, retry_after=retry_after, **values)
        self.body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}
