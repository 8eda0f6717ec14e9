"""The forms of a request: those of llama-cpp-python's server, with the defaults of `aegis chat` and finite numbers."""

from __future__ import annotations

from llama_cpp.server.types import CreateChatCompletionRequest, CreateCompletionRequest
from pydantic import BaseModel, ConfigDict, Field

_MAX_INT = 2**31 - 1


class StreamOptions(BaseModel):
    """What a stream has beside the answer."""

    include_usage: bool = False


class _Settings(BaseModel):
    """What both kinds of requests set; `top_p` and `min_p` have chat's defaults in the bindings too.

    The bindings' own defaults are a temperature of 0.8 and a penalty of 1.1 on repeated tokens, with which a trained
    model would answer otherwise than in `aegis chat`.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    temperature: float = Field(0.7, ge=0)
    repeat_penalty: float = Field(1.0, ge=0)
    top_k: int = Field(40, ge=0, le=_MAX_INT)
    stream_options: StreamOptions | None = None


class ChatRequest(_Settings, CreateChatCompletionRequest):  # type: ignore[misc]
    """A request for the answer to a chat; without `max_tokens`, the context bounds the answer."""

    max_tokens: int | None = Field(None, ge=1)


class CompletionRequest(_Settings, CreateCompletionRequest):  # type: ignore[misc]
    """A request for the continuation of a text."""

    max_tokens: int | None = Field(16, ge=1)
