"""Encodes records to token ids in this process, with a mask of the tokens that are trained.

In a chat, the assistant's tokens and the token that ends its turn are trained; assistant_turns.py finds the turns.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from aegis.data.assistant_turns import render_chat
from aegis.data.example import Encoded, Example
from aegis.data.json_values import reason
from aegis.data.loss_mask import Turn, first_reaching, tokens_of
from aegis.data.records import Plain, Record
from aegis.data.rejects import RowError
from aegis.data.template import ChatTemplate, ControlTokens
from aegis.data.tokenizer_parts import TokenizerParts
from aegis.errors import DataError


class _Job(NamedTuple):
    """A text to tokenize. `turns` is None for text that is trained from character `trained_from` on."""

    where: str
    text: str
    turns: list[Turn] | None
    trained_from: int
    is_document: bool
    lost_thoughts: bool = False
    unopened: bool = False

    @property
    def is_trained_whole(self) -> bool:
        return self.turns is None and self.trained_from == 0


class Batch(NamedTuple):
    """The result of encoding a batch of records.

    Attributes:
        rows: the usable rows, in order.
        rejects: position and reason of each unusable row.
        lost_thoughts: number of chats in which the template left a thought out.
        unopened: number of chats with an answer without a thought, although the prompt opens one.
    """

    rows: list[Encoded]
    rejects: list[tuple[str, str]]
    lost_thoughts: int
    unopened: int


class RowEncoder:
    """Encodes records to examples with one tokenizer.

    The begin-of-text token is added if the tokenizer adds one and the template has not written it; llama.cpp does the
    same with the same text.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        from tokenizers import Tokenizer

        self._parts = parts
        self._template = ChatTemplate(parts) if parts.template or parts.no_default else None
        self._backend = Tokenizer.from_str(parts.backend)
        self._backend.no_truncation()
        self._backend.no_padding()

    @cached_property
    def _control(self) -> ControlTokens:
        return ControlTokens(self._parts, self._template)

    @cached_property
    def _enders(self) -> NDArray[np.bool_]:
        """Whether each id may end a turn."""
        enders = np.zeros(self._parts.size, np.bool_)
        enders[sorted(self._control.enders)] = True
        return enders

    def encode(self, records: Sequence[Record], *, fold_system: bool = False) -> Batch:
        """Encode a batch.

        Raises:
            DataError: the tokenizer's chat template cannot be used at all, or is missing and needed.
        """
        jobs: list[_Job] = []
        rejects = []
        for record in records:
            try:
                jobs.append(self._job(record, fold_system))
            except RowError as error:
                rejects.append((record.where, str(error)))
            except RecursionError as error:  # tools or variables that are nested too deep
                rejects.append((record.where, reason(error)))
        # recording the tokens' positions takes longer than tokenizing
        with_positions = any(not job.is_trained_whole for job in jobs)
        encode = self._backend.encode_batch if with_positions else self._backend.encode_batch_fast
        encodings = encode([job.text for job in jobs], add_special_tokens=False)
        rows = [
            Encoded(job.where, job.text, self._example(job, encoding))
            for job, encoding in zip(jobs, encodings, strict=True)
        ]
        lost, unopened = sum(job.lost_thoughts for job in jobs), sum(job.unopened for job in jobs)
        return Batch(rows, rejects, lost, unopened)

    def token_ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids of texts, with the tokens that the tokenizer puts around a text if `special`."""
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in found]

    def _job(self, record: Record, fold_system: bool) -> _Job:
        for text, is_answer in texts_of(record):
            self._control.check(text, is_answer=is_answer)
        if isinstance(record, Plain):
            return _Job(record.where, record.text, None, 0, is_document=True)
        if self._template:
            text, turns, lost, unopened = render_chat(self._template, record, fold_system=fold_system)
            return _Job(record.where, text, turns, 0, is_document=False, lost_thoughts=lost, unopened=unopened)
        if record.pair:
            prompt, completion = (message["content"] or "" for message in record.messages)
            return _Job(record.where, prompt + completion, None, len(prompt), is_document=False)
        raise DataError("chat.no_template", where=record.where)

    def _example(self, job: _Job, encoding: Any) -> Example:
        found: list[int] = encoding.ids
        head = self._parts.begin if found[:1] != self._parts.begin else []
        tail = self._parts.end if job.turns is None else []
        ids = np.array([*head, *found, *tail], np.int32)
        trained = np.zeros(len(ids), np.bool_)
        if job.is_trained_whole:
            trained[len(head) :] = True
        elif job.turns is None:
            trained[len(head) + first_reaching(encoding, job.trained_from) :] = True
        else:
            of_text = trained[len(head) :]
            enders = np.flatnonzero(self._enders[ids[len(head) :]]).tolist()
            for tokens in tokens_of(job.turns, encoding, enders):
                of_text[tokens] = True
        return Example(ids, trained, job.is_document)


def texts_of(record: Record) -> Iterator[tuple[str, bool]]:
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
