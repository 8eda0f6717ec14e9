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
from aegis.data.turns import Turn, first_reaching, tokens_of
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


class _Job(NamedTuple):
    """A text to tokenize. `turns` is None for text learnt from character `learnt_from` on."""

    where: str
    text: str
    turns: list[Turn] | None
    learnt_from: int
    is_document: bool

    @property
    def is_learnt_whole(self) -> bool:
        return self.turns is None and self.learnt_from == 0


class Encoder:
    """Turns records into examples for one tokenizer.

    The begin-of-text token is written exactly when the tokenizer writes one by itself and the template has not
    done so, which is also what llama.cpp does with the same text.
    """

    def __init__(self, tokenizer: Any, *, render_seconds: float = RENDER_SECONDS) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("chat.slow_tokenizer")
        # `apply_chat_template` renders with this too, but copies the messages first, in case they hold more than text.
        # The copy takes longer than the rendering, and a chat is rendered once for each of its answers.
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self._compiled = _compile_jinja_template
        self._tokenizer = tokenizer
        self._special_tokens = tokenizer.special_tokens_map
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
        # keeping the tokens' places takes longer than finding the tokens
        placed = any(not job.is_learnt_whole for job in jobs)
        encode = self._backend.encode_batch if placed else self._backend.encode_batch_fast
        encodings = encode([job.text for job in jobs], add_special_tokens=False)
        return [self._example(job, encoding) for job, encoding in zip(jobs, encodings, strict=True)]

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
            Turn(start, _end_of(answer, text, start, limit), limit)
            for start, limit, answer in zip(starts, [*starts[1:], len(text)], answers, strict=True)
        ]
        return _Job(chat.where, text, turns, 0, is_document=False)

    def _render(self, messages: list[Message], *, prompt: bool) -> str:
        try:
            template = self._compiled(self._tokenizer.get_chat_template())
            text = template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=prompt,
                **self._special_tokens,
            )
        except (jinja2.exceptions.SecurityError, jinja2.TemplateSyntaxError) as error:
            raise DataError("chat.template_unusable", name=type(error).__name__, error=error) from error
        except Exception as error:  # a template is a program: it can raise anything
            raise RowError(phrase("chat.template_refuses", name=type(error).__name__, error=error)) from error
        return str(text)

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
