"""The chat model of a base or a live model, in transformers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from aegis.chat.conversation import SamplingParams
from aegis.errors import UsageError
from aegis.model.greedy import continue_greedily
from aegis.model.text_openings import end_tokens
from aegis.report.answers import Answer
from aegis.verification.token_parity import chat_ids

# llama.cpp's defaults, so that a temperature means the same in both programs
_TOP_K, _TOP_P, _MIN_P = 40, 0.95, 0.05


class TransformersModel:
    """A …ForCausalLM, with its adapter and soul if it has them, and the base's tokenizer."""

    def __init__(self, name: str, model: Any, tokenizer: Any, context: int) -> None:
        self.name = name
        self.context = context
        self._model = model
        self._tokenizer = tokenizer

    def count_tokens(self, messages: Sequence[Mapping[str, str]]) -> int:
        return len(self._ids(messages))

    def generate(self, messages: Sequence[Mapping[str, str]], sampling: SamplingParams) -> Iterator[str]:
        """Yield the answer piece by piece; closing the iterator stops the generation.

        The model runs in a thread; an exception there is raised here.

        Raises:
            UsageError: the conversation leaves no space for an answer.
        """
        from transformers import TextIteratorStreamer

        ids = torch.tensor([self._ids(messages)], device=self._model.device)
        room = self.context - ids.shape[1]
        if room < 1:
            raise UsageError("speaking.context_full", ids_shape=ids.shape[1], context=self.context)
        streamer = TextIteratorStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True)
        abandoned = threading.Event()
        failures: list[BaseException] = []

        def generate() -> None:
            try:
                torch.manual_seed(sampling.seed)
                self._model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    streamer=streamer,
                    max_new_tokens=min(sampling.max_tokens, room),
                    use_cache=True,
                    stopping_criteria=[lambda seen, _: torch.full((len(seen),), abandoned.is_set(), device=ids.device)],
                    **_sampling(sampling.temperature),
                )
            except BaseException as error:
                failures.append(error)
            finally:
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            abandoned.set()
            thread.join()
        if failures:
            raise failures[0]

    def answers(
        self,
        chats: Sequence[Sequence[Mapping[str, str]]],
        max_tokens: int,
        *,
        expired: Callable[[], bool],
        advance: Callable[[], object],
    ) -> list[Answer]:
        """Answer several conversations in one batch, each with its most likely tokens.

        Args:
            expired: asked at every token; if true, the answers end there.
            advance: called at every token.

        Raises:
            UsageError: a conversation leaves no space for an answer.
        """
        rows = [self._ids(chat) for chat in chats]
        longest = max(map(len, rows))
        if longest >= self.context:
            raise UsageError("speaking.context_full", ids_shape=longest, context=self.context)
        late = False

        def over() -> bool:
            nonlocal late
            late = expired()
            advance()
            return late

        tokens = min(max_tokens, self.context - longest)
        ends = end_tokens(self._model, self._tokenizer)
        found = continue_greedily(self._model, rows, tokens, ends, record=True, expired=over)
        return [
            Answer(self._tokenizer.decode(ids, skip_special_tokens=True).strip(), cut=late and not ended)
            for ids, ended in found
        ]

    def _ids(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return chat_ids(self._tokenizer, [dict(message) for message in messages])


def _sampling(temperature: float) -> dict[str, Any]:
    if temperature <= 0:
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {"do_sample": True, "temperature": temperature, "top_k": _TOP_K, "top_p": _TOP_P, "min_p": _MIN_P}
