"""Encodes records to token ids, with a mask of the tokens that are trained, and texts, in a confined process.

An untrusted chat template and tokenizer process every row there: the process is bounded in time and memory, even inside
one call into C, and Ctrl-C ends the process that waits for it. A batch is one request, so only
its texts and its tokens are sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from aegis.data import worker_messages
from aegis.data.example import Encoded, Example
from aegis.data.records import Record
from aegis.data.rejects import Rejects
from aegis.data.tokenizer_parts import TokenizerParts
from aegis.errors import UnsupportedModelError
from aegis.llama_cpp import rendering
from aegis.llama_cpp.confined import Confined, Ended, Message, Overdue, TooLarge
from aegis.messages import language

BATCH_SECONDS = 60.0
"""Time limit of a batch, in addition to the time for its text."""
_BYTES_PER_SECOND = 200_000
"""Minimum speed; ordinary tokenizers are a hundred times faster."""
_BATCH_BYTES = 512 << 20
_TOKENIZER_BYTES = 4 << 30
_COPIES = 24
"""Each token has its positions, masks and a copy of its text until the batch is finished."""

_confined = Confined("aegis.data.encoding_worker")


class Encoder:
    """Encodes records to examples with one tokenizer.

    Args:
        tokenizer: a fast transformers tokenizer.
        fold_system: where the chat template has no place for a system message, put it before the first question.
        seconds: time limit of a batch with little text.
    """

    def __init__(self, tokenizer: Any, *, fold_system: bool = False, seconds: float = BATCH_SECONDS) -> None:
        if not tokenizer.is_fast:
            raise UnsupportedModelError("chat.slow_tokenizer")
        self.lost_thoughts = 0
        """Number of chats in which the template left a thought out."""
        self.unopened = 0
        """Number of chats with an answer without a thought, although the prompt opens one."""
        _confined.start(BATCH_SECONDS)
        self._fold_system = fold_system
        self._seconds = seconds
        self._parts = TokenizerParts.of(tokenizer).as_bytes()
        self._key = hashlib.sha256(self._parts).hexdigest()

    def encode(self, records: Sequence[Record], rejects: Rejects) -> list[Example]:
        """Encode a batch; unusable rows go to `rejects`.

        Raises:
            DataError: the tokenizer's chat template cannot be used at all, or is missing and needed; or it, or the
                tokenizer, does not finish or takes too much memory.
        """
        return [row.example for row in self._encode(records, rejects, texts=False)]

    def encode_texts(self, records: Sequence[Record], rejects: Rejects) -> list[Encoded]:
        """Encode a batch like `encode`, and return each row's place and text too.

        Raises:
            DataError: like `encode`.
        """
        return self._encode(records, rejects, texts=True)

    def token_ids(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """Return the ids of each text.

        Args:
            special: add the tokens that the tokenizer puts around a text.

        Raises:
            DataError: the tokenizer does not finish, or takes too much memory.
        """
        lines = json.dumps(list(texts)).encode()
        seconds = self._seconds + len(lines) / _BYTES_PER_SECOND
        return worker_messages.ids_of(self._bounded({"do": "tokenize", "special": special}, lines, seconds))

    def _encode(self, records: Sequence[Record], rejects: Rejects, *, texts: bool) -> list[Encoded]:
        lines, unwritable = worker_messages.lines_of(records)
        seconds = self._seconds + len(lines) / _BYTES_PER_SECOND
        fields: dict[str, object] = {"do": "encode", "fold_system": self._fold_system, "texts": texts}
        batch = worker_messages.batch_of(self._bounded(fields, lines, seconds))
        for where, reason in (*unwritable, *batch.rejects):
            rejects.add(where, reason)
        self.lost_thoughts += batch.lost_thoughts
        self.unopened += batch.unopened
        return batch.rows

    def _bounded(self, fields: dict[str, object], lines: bytes, seconds: float) -> Message:
        try:
            return self._ask(fields, lines, seconds)
        except (Overdue, TooLarge, Ended) as error:
            raise rendering.out_of_bounds(error, seconds) from error

    def _ask(self, fields: dict[str, object], lines: bytes, seconds: float) -> Message:
        memory_bytes = _BATCH_BYTES + _COPIES * len(lines)
        named: dict[str, object] = {"tokenizer": self._key, "language": language()}
        while True:
            answer = _confined.ask({**fields, **named}, lines, seconds=seconds, memory_bytes=memory_bytes)
            if "lengths" in answer.fields:
                return answer
            # a new process, or one that has seen other tokenizers since
            _confined.ask({"do": "learn", **named}, self._parts, seconds=BATCH_SECONDS, memory_bytes=_TOKENIZER_BYTES)


def token_ids(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Return the ids of one text; arguments and errors as in `Encoder.token_ids`."""
    (ids,) = Encoder(tokenizer).token_ids([text], special=special)
    return ids
