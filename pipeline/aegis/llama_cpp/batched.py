"""Answers several conversations at once in llama.cpp: one pass over the weights gives each of them its next token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from aegis.errors import EnvironmentFault
from aegis.llama_cpp.chat_template import Message
from aegis.llama_cpp.runtime import Runtime
from aegis.llama_cpp.text_stream import joined

_PASS_TOKENS = 512
"""Prompt tokens per pass."""


class BatchRuntime(Runtime):
    """A GGUF that also answers conversations together, each as a sequence of one context."""

    def chat_all(
        self,
        conversations: Sequence[Sequence[Message]],
        max_tokens: int,
        *,
        expired: Callable[[], bool],
        advance: Callable[[], object],
    ) -> list[tuple[str, bool]]:
        """Answer every conversation with its most likely tokens.

        Args:
            expired: asked at every token; if true, the answers end there.
            advance: called at every token.

        Returns:
            Each answer, and whether its time was over before its end.

        Raises:
            UsageError: a conversation does not fit the context.
            IntegrityError, DataError: as in `chat_tokens`.
            EnvironmentFault: there is not enough memory for the context.
        """
        prompts = [self.chat_tokens(conversation) for conversation in conversations]
        for prompt in prompts:
            self._refuse_overlong(len(prompt) + 1)
        answers: list[tuple[str, bool]] = []
        for together in self._groups(prompts, max_tokens):
            with self._sequences(together, max_tokens) as next_tokens:
                for tokens, cut in self._continued(together, next_tokens, max_tokens, expired, advance):
                    answers.append(("".join(joined(map(self._piece, tokens))).strip(), cut))
        return answers

    def _groups(self, prompts: Sequence[list[int]], max_tokens: int) -> Iterator[list[list[int]]]:
        """Divide the prompts so that each group fits the context with its answers."""
        group: list[list[int]] = []
        for prompt in prompts:
            if group and sum(len(found) + max_tokens for found in (*group, prompt)) > self.n_ctx:
                yield group
                group = []
            group.append(prompt)
        if group:
            yield group

    def _continued(
        self,
        prompts: Sequence[list[int]],
        next_tokens: Callable[[Sequence[tuple[int, int, int]]], dict[int, int]],
        max_tokens: int,
        expired: Callable[[], bool],
        advance: Callable[[], object],
    ) -> list[tuple[list[int], bool]]:
        answers: list[list[int]] = [[] for _ in prompts]
        cells = [(token, at, number) for number, prompt in enumerate(prompts) for at, token in enumerate(prompt)]
        late = False
        found: dict[int, int] = {}
        for start in range(0, len(cells), _PASS_TOKENS):
            found |= next_tokens(cells[start : start + _PASS_TOKENS])
        while found and not (late := expired()):
            advance()
            cells = []
            for number, token in found.items():
                if self._binding.llama_vocab_is_eog(self._vocab, token):
                    continue
                answers[number].append(token)
                at = len(prompts[number]) + len(answers[number]) - 1
                if len(answers[number]) < max_tokens and at + 1 < self.n_ctx:
                    cells.append((token, at, number))
            found = next_tokens(cells) if cells else {}
        return [(answer, late and number in found) for number, answer in enumerate(answers)]

    @contextmanager
    def _sequences(
        self, prompts: Sequence[list[int]], max_tokens: int
    ) -> Iterator[Callable[[Sequence[tuple[int, int, int]]], dict[int, int]]]:
        """Open a context with one sequence per prompt.

        Yields:
            A function of tokens, each with its position and the number of its sequence. It evaluates them, and returns
            the most likely next token of each sequence whose prompt has ended.
        """
        lib, llama = self._binding, self._llama
        params = type(llama.context_params).from_buffer_copy(llama.context_params)
        params.n_ctx = min(self.n_ctx, sum(len(prompt) + max_tokens for prompt in prompts))
        params.n_batch = params.n_ubatch = max(_PASS_TOKENS, len(prompts))
        params.n_seq_max, params.kv_unified = len(prompts), True
        context = lib.llama_init_from_model(llama._model.model, params)
        if not context:
            raise EnvironmentFault("runtime.no_context", n_ctx=params.n_ctx, text="")
        batch = lib.llama_batch_init(params.n_batch, 0, 1)
        last = [len(prompt) - 1 for prompt in prompts]

        def next_tokens(cells: Sequence[tuple[int, int, int]]) -> dict[int, int]:
            batch.n_tokens = len(cells)
            for place, (token, at, number) in enumerate(cells):
                batch.token[place], batch.pos[place] = token, at
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, number
                batch.logits[place] = at >= last[number]
            if code := lib.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {code}")
            return {
                number: self._most_likely(context, place)
                for place, (_, at, number) in enumerate(cells)
                if at >= last[number]
            }

        try:
            yield next_tokens
        finally:
            lib.llama_batch_free(batch)
            lib.llama_free(context)

    def _most_likely(self, context: Any, place: int) -> int:
        logits = self._binding.llama_get_logits_ith(context, place)
        return int(np.ctypeslib.as_array(logits, shape=(self._llama.n_vocab(),)).argmax())
