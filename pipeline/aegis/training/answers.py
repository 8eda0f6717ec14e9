"""Writes answers.jsonl: what the model answers to a few held-out questions, again and again while it is trained.

Nothing of the training changes: the answers are the most likely tokens, so no random number is drawn, and the decoder
runs kernel by kernel, so nothing is compiled or recorded again. By itself this takes at most `SHARE` of the time.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aegis import progress
from aegis.config.train_settings import AUTO, TrainConfig
from aegis.data.chat import token_ids
from aegis.data.packing import Windows
from aegis.data.questions import Question
from aegis.data.training_set import find_heldout_questions
from aegis.errors import first_line
from aegis.messages import phrase
from aegis.model.greedy import continue_greedily
from aegis.model.text_openings import end_tokens
from aegis.runs.lock import check_held
from aegis.training.execution.apply_options import host_embeddings, plain_layers
from aegis.training.state import TrainState
from aegis.verification.token_parity import chat_ids

QUESTIONS, MAX_TOKENS = 2, 48
SHARE = 0.02
"""The part of a training's time that answers may take by themselves, `sample_steps` being "auto"."""
_MIN_SECONDS = 1.0
"""Less time than this is not enough to find the questions in the data and to answer them."""


@dataclass(frozen=True)
class _Prompt:
    question: Question
    ids: list[int]


class AnswerLog:
    """Lets the model answer when it is due, and appends a row per answer to a file.

    A row has step, question, answer, whether the answer was `cut` at MAX_TOKENS or by the time limit, reference (the
    data's own answer, or how a text goes on) and time.

    Args:
        tokenizer: loads the base's tokenizer.
        heldout: the held-out windows of the config's data.
        first, last: the training's steps.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        tokenizer: Callable[[], Any],
        heldout: Windows,
        file: Path,
        first: int,
        last: int,
    ) -> None:
        self._config, self._state, self._file, self._last = config, state, file, last
        self._load_tokenizer, self._heldout = tokenizer, heldout
        self._tokenizer: Any = None
        self._prompts: list[_Prompt] | None = None
        self._every = None if config.sample_steps == AUTO else int(config.sample_steps)
        self._clock = _Clock(first, last)

    def is_due(self, done: int, logged: bool) -> bool:
        """Whether answers are due after `done` steps; the caller asks after every step.

        Args:
            logged: whether the step has a row in metrics.jsonl.
        """
        if self._prompts == []:
            return False
        if self._every is not None:
            return done % self._every == 0 or done == self._last
        return logged and self._clock.permits(done)

    def write(self, done: int, stopping: Callable[[], bool]) -> None:
        """Let the model answer, and write the rows. If it cannot, the reason is shown, and no later answers are due.

        Args:
            stopping: whether the training was asked to end; the answers end then too.

        Raises:
            LockedError: the run was moved.
        """
        allowed = self._clock.allowed if self._every is None else math.inf
        with self._clock.spending() as spent:
            try:
                rows = self._rows(done, lambda: stopping() or spent() > allowed)
            except BrokenPipeError:  # the reader of our progress output has ended
                raise
            except Exception as error:  # no training of hours ends because its model could not be asked
                progress.say(phrase("answers.none", why=first_line(error)))
                self._prompts = []
                return
            check_held(self._file)
            with self._file.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row) + "\n" for row in rows))

    def _rows(self, done: int, expired: Callable[[], bool]) -> list[dict[str, Any]]:
        if self._prompts is None:
            self._prompts = self._find(expired)
        if not self._prompts:
            return []
        tokens = min(MAX_TOKENS, self._config.max_length - max(len(prompt.ids) for prompt in self._prompts))
        ends = end_tokens(self._state.model, self._tokenizer)
        with self._clock.answering():
            found = next_tokens(self._state, [prompt.ids for prompt in self._prompts], tokens, ends, expired)
        return [
            {
                "step": done,
                "question": prompt.question.text,
                "answer": self._tokenizer.decode(ids, skip_special_tokens=True).strip(),
                "cut": not ended,
                "reference": prompt.question.answer,
                "time": round(time.time(), 1),
            }
            for prompt, (ids, ended) in zip(self._prompts, found, strict=True)
        ]

    def _find(self, expired: Callable[[], bool]) -> list[_Prompt]:
        tokenizer = self._tokenizer = self._load_tokenizer()
        found = find_heldout_questions(self._config, tokenizer, self._heldout, QUESTIONS, expired)
        prompts = []
        for question in found:
            if question.is_chat:
                ids = chat_ids(tokenizer, [{"role": "user", "content": question.text}])
            else:
                ids = token_ids(tokenizer, question.text)
            if 0 < len(ids) < self._config.max_length:
                prompts.append(_Prompt(question, ids))
        return prompts


@torch.no_grad()
def next_tokens(
    state: TrainState,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    ends: Collection[int],
    expired: Callable[[], bool] = lambda: False,
) -> list[tuple[list[int], bool]]:
    """Continue prompts between two steps, without dropout; arguments and result as in `continue_greedily`."""
    embed = host_embeddings(state.model) if state.soul.skew.is_cuda else None
    with plain_layers(state.options, state.model), state.adapters.without_dropout():
        state.soul.cache_rotation()
        try:
            return continue_greedily(state.model, prompts, max_tokens, ends, embed=embed, expired=expired)
        finally:
            state.soul.discard_cache()


class _Clock:
    """Times a training and its answers.

    Args:
        first, last: the training's steps.
        now: the clock, in seconds.

    Attributes:
        allowed: seconds that the next answers may take.
    """

    def __init__(self, first: int, last: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._last, self._looks, self._now = last, 0, now
        self._look = first, now()
        self._began = self._look[1]
        self._spent = 0.0
        self._pace = math.inf
        self._cost: float | None = None
        self.allowed = 0.0

    def permits(self, done: int) -> bool:
        """Whether answers may be written now. The first ones may take their time from the steps to come."""
        now = self._now()
        (step, moment), self._look = self._look, (done, now)
        self._looks += 1
        passed = now - self._began
        # the shortest time per step so far: some steps also compile kernels, evaluate or begin a finish
        self._pace = min(self._pace, (now - moment) / (done - step))
        if self._cost is not None:
            self.allowed = SHARE * passed - self._spent
            return self.allowed >= self._cost
        expected = passed + self._pace * (self._last - done)
        self.allowed = SHARE * expected - self._spent
        # the time until the second row has also loaded and compiled kernels
        return self._looks > 2 and self.allowed >= _MIN_SECONDS

    @contextmanager
    def spending(self) -> Iterator[Callable[[], float]]:
        """Count the time of the block as spent; yield a function for the seconds so far."""
        began = self._now()
        try:
            yield lambda: self._now() - began
        finally:
            self._spent += self._now() - began

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Expect that the next answers take as long as those of this block."""
        began = self._now()
        yield
        self._cost = self._now() - began
