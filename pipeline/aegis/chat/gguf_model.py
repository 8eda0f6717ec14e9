"""The chat model of a GGUF, in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from aegis.chat.conversation import SamplingParams
from aegis.llama_cpp import Message, Runtime


class GgufModel:
    """A GGUF in llama.cpp, with its own chat template."""

    def __init__(self, runtime: Runtime) -> None:
        self.name = runtime.path.stem
        self.context = runtime.n_ctx
        self._runtime = runtime

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self._runtime.chat_tokens(messages))

    def generate(self, messages: Sequence[Message], sampling: SamplingParams) -> Iterator[str]:
        return self._runtime.chat(messages, sampling.max_tokens, sampling.temperature, sampling.seed)
