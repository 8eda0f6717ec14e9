"""Encodes records to token ids, with a mask of the tokens that are trained.

In a chat, the assistant's tokens and the token that ends its turn are trained; prefixes.py finds the turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis.data.deadline import within
from aegis.data.loss_mask import Turn, first_reaching, tokens_of
from aegis.data.prefixes import render_chat
from aegis.data.records import Plain, Record
from aegis.data.rejects import Rejects, RowError
from aegis.data.template import ChatTemplate, ControlTokens
from aegis.errors import DataError, UnsupportedModelError
from aegis.llama_cpp import adds_begin_token

RENDER_SECONDS = 60.0
"""Time limit of one call of `Encoder.encode` for rendering; an honest template takes microseconds per chat."""

RENDER_BYTES = 200 << 20
"""Memory limit for it, without a few copies of the text itself."""
_COPIES = 8


class Example(NamedTuple):
    """`ids` int32 (n,), `trained` bool (n,). A document may be cut into several windows, a chat may not."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    is_document: bool


class Encoded(NamedTuple):
    """A row's place, its rendered text, and its example."""

    where: str
    text: str
    example: Example


class _Job(NamedTuple):
    """A text to tokenize. `turns` is None for text that is trained from character `learnt_from` on."""

    where: str
    text: str
    turns: list[Turn] | None
    learnt_from: int
    is_document: bool

    @property
    def is_learnt_whole(self) -> bool:
        return self.turns is None and self.learnt_from == 0


class Encoder:
    """Encodes records to examples with one tokenizer.

    The begin-of-text token is added if the tokenizer adds one and the template has not written it; llama.cpp does the
    same with the same text.
    """

    def __init__(self, tokenizer: Any, *, fold_system: bool = False, render_seconds: float = RENDER_SECONDS) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("chat.slow_tokenizer")
        self.lost_thoughts = 0
        """Number of chats in which the template left a thought out."""
        self.unopened = 0
        """Number of chats with an answer without a thought, although the prompt opens one."""
        self._fold_system = fold_system
        self._render_seconds = render_seconds
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos = [int(tokenizer.bos_token_id)] if adds_begin_token(tokenizer) else []
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    @cached_property
    def _control(self) -> ControlTokens:
        # not in __init__: it renders the template, and this must be within the time limit
        return ControlTokens(self._tokenizer, self._template)

    @cached_property
    def _enders(self) -> NDArray[np.bool_]:
        """Whether each id may end a turn."""
        enders = np.zeros(max(self._tokenizer.get_vocab().values()) + 1, np.bool_)
        enders[sorted(self._control.enders)] = True
        return enders

    def encode(self, records: Sequence[Record], rejects: Rejects) -> list[Example]:
        """Encode a batch; unusable rows go to `rejects`.

        Raises:
            DataError: the tokenizer's chat template cannot be used at all, or is missing and needed.
        """
        return [encoded.example for encoded in self.encode_texts(records, rejects)]

    def encode_texts(self, records: Sequence[Record], rejects: Rejects) -> list[Encoded]:
        """Encode a batch like `encode`, and return each row's place and text too.

        Raises:
            DataError: the tokenizer's chat template cannot be used at all, or is missing and needed.
        """
        memory_bytes = RENDER_BYTES + _COPIES * sum(_size(record) for record in records)
        try:
            jobs = within(self._render_seconds, lambda: self._jobs(records, rejects), memory_bytes=memory_bytes)
        except TimeoutError as error:
            raise DataError(
                "chat.template_hangs", render_seconds=self._render_seconds, records_count=len(records)
            ) from error
        # recording the tokens' positions takes longer than tokenizing
        placed = any(not job.is_learnt_whole for job in jobs)
        encode = self._backend.encode_batch if placed else self._backend.encode_batch_fast
        encodings = encode([job.text for job in jobs], add_special_tokens=False)
        return [
            Encoded(job.where, job.text, self._example(job, encoding))
            for job, encoding in zip(jobs, encodings, strict=True)
        ]

    def _jobs(self, records: Sequence[Record], rejects: Rejects) -> list[_Job]:
        jobs = []
        for record in records:
            try:
                jobs.append(self._job(record))
            except RowError as error:
                rejects.add(record.where, str(error))
        return jobs

    def _job(self, record: Record) -> _Job:
        for text, is_answer in _texts(record):
            self._control.check(text, is_answer=is_answer)
        if isinstance(record, Plain):
            return _Job(record.where, record.text, None, 0, is_document=True)
        if self._template:
            rendered = render_chat(self._template, record, fold_system=self._fold_system)
            self.lost_thoughts += rendered.lost_thoughts
            self.unopened += rendered.unopened
            return _Job(record.where, rendered.text, rendered.turns, 0, is_document=False)
        if record.pair:
            prompt, completion = (message["content"] or "" for message in record.messages)
            return _Job(record.where, prompt + completion, None, len(prompt), is_document=False)
        raise DataError("chat.no_template", where=record.where)

    def _example(self, job: _Job, encoding: Any) -> Example:
        found: list[int] = encoding.ids
        head = self._bos if found[:1] != self._bos else []
        tail = self._eos if job.turns is None else []
        ids = np.array([*head, *found, *tail], np.int32)
        trained = np.zeros(len(ids), np.bool_)
        if job.is_learnt_whole:
            trained[len(head) :] = True
        elif job.turns is None:
            trained[len(head) + first_reaching(encoding, job.learnt_from) :] = True
        else:
            of_text = trained[len(head) :]
            enders = np.flatnonzero(self._enders[ids[len(head) :]]).tolist()
            for tokens in tokens_of(job.turns, encoding, enders):
                of_text[tokens] = True
        return Example(ids, trained, job.is_document)


def _texts(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield every text of a record, and whether the assistant writes it."""
    if isinstance(record, Plain):
        yield record.text, False
        return
    for message in record.messages:
        is_answer = message["role"] == "assistant"
        yield message["content"] or "", is_answer
        if len(message) > 2:
            rest = {name: value for name, value in message.items() if name not in ("role", "content")}
            yield json.dumps(rest, ensure_ascii=False), is_answer
    if record.tools or record.variables:
        yield json.dumps([record.tools, record.variables], ensure_ascii=False), False


def _size(record: Record) -> int:
    """Return an upper bound on the bytes of a record's texts: four per character."""
    return 4 * sum(len(text) for text, _ in _texts(record))
