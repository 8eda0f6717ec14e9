"""From records to token ids, with a mask that says which tokens are learnt.

A chat is learnt on the assistant's tokens and on the token that ends its turn, found by *prefix rendering*:
turn i begins where the rendering of the messages before it, with the generation prompt, ends. So the model
learns exactly what it has to write when llama.cpp hands it that prompt. `{% generation %}` blocks would need
templates that have them; Phi-3.5's does not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from aegis.data.deadline import within
from aegis.data.formats import Chat, Message, Plain, Record
from aegis.data.rejects import Rejects, RowError
from aegis.errors import DataError, UnsupportedModelError
from aegis.messages import phrase

RENDER_SECONDS = 60.0
"""Time for one call of `Encoder.encode` to render its chats; an honest template takes microseconds for each."""

RENDER_BYTES = 200 << 20
"""Memory for it, beside a few copies of the text itself."""
_COPIES = 8


class Example(NamedTuple):
    """`ids` int32 (n,), `trained` bool (n,). A document may be cut into several windows, a chat may not."""

    ids: NDArray[np.int32]
    trained: NDArray[np.bool_]
    is_document: bool


class _Turn(NamedTuple):
    """One assistant's turn in a rendered chat, in characters: the turn ends between `content_end` and `limit`."""

    start: int
    content_end: int
    limit: int


class _Job(NamedTuple):
    """A text to tokenize. `turns` is None for text learnt from character `learnt_from` on."""

    where: str
    text: str
    turns: list[_Turn] | None
    learnt_from: int
    is_document: bool


class Encoder:
    """Turns records into examples for one tokenizer.

    The begin-of-text token is written exactly when the tokenizer writes one by itself and the template has not
    done so, which is also what llama.cpp does with the same text.
    """

    def __init__(self, tokenizer: Any, *, render_seconds: float = RENDER_SECONDS) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("chat.slow_tokenizer")
        self._tokenizer = tokenizer
        self._render_seconds = render_seconds
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos = _leading_bos(tokenizer)
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        added = tokenizer.added_tokens_decoder
        # An added token of white space, which Gemma has, ends no turn
        enders = {token_id for token_id, token in added.items() if token.content.strip()}
        self._enders = np.array(
            [token_id in enders for token_id in range(max(tokenizer.get_vocab().values()) + 1)], dtype=np.bool_
        )
        template = str(tokenizer.chat_template or "")
        reserved = {t.content for t in added.values() if t.special or t.content in template}
        self._reserved = re.compile("|".join(map(re.escape, sorted(reserved))) or r"(?!)")

    def encode(self, records: Sequence[Record], rejects: Rejects) -> list[Example]:
        """Encode a batch; rows that cannot be used go to `rejects`.

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
        examples = []
        encodings = self._backend.encode_batch([job.text for job in jobs], add_special_tokens=False)
        for job, encoding in zip(jobs, encodings, strict=True):
            ids = np.array(encoding.ids, dtype=np.int32)
            spans = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            examples.append(self._example(job, ids, spans))
        return examples

    def _jobs(self, records: Sequence[Record], rejects: Rejects) -> list[_Job]:
        jobs = []
        for record in records:
            try:
                jobs.append(self._job(record))
            except RowError as error:
                rejects.add(record.where, str(error))
        return jobs

    def _job(self, record: Record) -> _Job:
        if isinstance(record, Plain):
            self._refuse_reserved(record.text)
            return _Job(record.where, record.text, None, 0, is_document=True)
        for message in record.messages:
            self._refuse_reserved(message["content"])
        if self._tokenizer.chat_template:
            return self._rendered(record)
        if record.pair:
            prompt, completion = (message["content"] for message in record.messages)
            return _Job(record.where, prompt + completion, None, len(prompt), is_document=False)
        raise DataError("chat.no_template", where=record.where)

    def _refuse_reserved(self, content: str) -> None:
        """A row with `<|end|>` in its text would end the turn there and let the row write the next one."""
        if match := self._reserved.search(content):
            raise RowError(phrase("chat.control_token", match=match.group()))

    def _rendered(self, chat: Chat) -> _Job:
        messages = chat.messages
        text = self._render(messages, prompt=False)
        for message in messages:
            if message["content"].strip() not in text:
                raise RowError(phrase("chat.message_left_out", message=message["role"]))
        starts: list[int] = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(messages[:number], prompt=True)
            if not text.startswith(before):
                raise DataError("chat.template_not_a_continuation", where=chat.where, number=number + 1)
            starts.append(len(before))
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        turns = [
            _Turn(start, _end_of(answer, text, start, limit), limit)
            for start, limit, answer in zip(starts, [*starts[1:], len(text)], answers, strict=True)
        ]
        return _Job(chat.where, text, turns, 0, is_document=False)

    def _render(self, messages: list[Message], *, prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        except (jinja2.exceptions.SecurityError, jinja2.TemplateSyntaxError) as error:
            raise DataError("chat.template_unusable", name=type(error).__name__, error=error) from error
        except Exception as error:  # a template is a program: it can raise anything
            raise RowError(phrase("chat.template_refuses", name=type(error).__name__, error=error)) from error
        return str(text)

    def _example(self, job: _Job, ids: NDArray[np.int32], spans: NDArray[np.int64]) -> Example:
        if job.turns is None:
            # a token that holds the prompt's last space and the completion's first word is learnt
            trained = (spans[:, 0] >= job.learnt_from) | (spans[:, 1] > job.learnt_from)
            tail = self._eos
        else:
            trained = self._turns_mask(job.turns, ids, spans)
            tail = []
        head = self._bos if ids[:1].tolist() != self._bos else []
        ids = np.concatenate([np.array(head, np.int32), ids, np.array(tail, np.int32)])
        trained = np.concatenate([np.zeros(len(head), np.bool_), trained, np.ones(len(tail), np.bool_)])
        return Example(ids, trained, job.is_document)

    def _turns_mask(self, turns: list[_Turn], ids: NDArray[np.int32], spans: NDArray[np.int64]) -> NDArray[np.bool_]:
        trained = np.zeros(len(ids), dtype=np.bool_)
        starts, ends = spans[:, 0], spans[:, 1]
        for turn in turns:
            # A token that begins before the turn belongs to the prompt: `<|assistant|>` swallows spaces after it
            inside = (starts >= turn.start) & (starts < turn.limit)
            enders = np.flatnonzero(inside & (ends > turn.content_end) & self._enders[ids])
            if not len(enders):
                raise DataError("chat.template_without_end")
            inside[enders[0] + 1 :] = False
            trained |= inside
        return trained


def _size(record: Record) -> int:
    """Bytes of a record's text, four a character at most."""
    texts = [record.text] if isinstance(record, Plain) else [message["content"] for message in record.messages]
    return 4 * sum(map(len, texts))


def _end_of(content: str, text: str, start: int, limit: int) -> int:
    """Where `content` ends in text[start:limit]; a template may have stripped it."""
    for written in (content, content.strip()):
        found = text.find(written, start, limit)
        if found >= 0:
            return found + len(written)
    raise RowError(phrase("chat.answer_left_out"))


def _leading_bos(tokenizer: Any) -> list[int]:
    """The begin-of-text token if the tokenizer puts it before a text by itself, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
