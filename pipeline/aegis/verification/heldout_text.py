"""Chooses the text that models are compared on: the user's, half of it as chats, and text that nobody trained on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aegis.data.chat import Encoder
from aegis.demo.corpus import documents
from aegis.verification import token_sequences

MIN_TOKENS = 64
_SEQUENCE_TOKENS = 512
_LOGITS = 1 << 25
"""Maximum logits per sequence: 134 MB. With a vocabulary of 262,144 a sequence then has 128 tokens."""
OWN_TEXTS = 64
"""Rows of the user's whose ids are compared in transformers and in llama.cpp."""
Origin = Literal["text", "heldout", "trained", "filled"]
"""The origin of the compared text: --text, held-out rows, trained rows, or too few rows with other text added."""


@dataclass(frozen=True)
class Sample:
    """The text of one verification.

    Attributes:
        compared: token ids that go through every model.
        other: token ids on which base and result are compared, to see what the training changed elsewhere.
        own_texts: some of the user's texts, plain and as the base's chat template renders them.
    """

    compared: list[list[int]]
    other: list[list[int]]
    own_texts: list[str]
    origin: Origin

    @classmethod
    def of_text(cls, texts: Sequence[str], tokenizer: Any, tokens: int, limit: int) -> Sample:
        """Make a sample from paragraphs, in sequences of at most `limit` tokens, `tokens` in all."""
        rendered = token_sequences.rendered(texts, tokenizer)
        chats = [ids[:limit] for ids in Encoder(tokenizer).token_ids(rendered, special=False)]
        own_texts = [*texts[:OWN_TEXTS], *rendered[:OWN_TEXTS]]
        return cls._make(chats, texts, texts, own_texts, tokenizer, tokens, limit, "text")

    @classmethod
    def of_chats(
        cls, rows: Sequence[list[int]], tokenizer: Any, tokens: int, limit: int, *, trained: bool = False
    ) -> Sample:
        """Make a sample from trained or held-out chats; the other text comes from the demo's corpus.

        Args:
            rows: token ids, twice `tokens` in all if there are enough: half of the sample is their plain text.
            trained: whether the training saw these rows.
        """
        chats = [row[:limit] for row in rows]
        plain = [tokenizer.decode(chat, skip_special_tokens=True) for chat in chats]
        origin: Origin = "trained" if trained else "heldout"
        own = own_texts(rows, tokenizer)
        return cls._make(chats, plain, documents(0, 60, "held_out"), own, tokenizer, tokens, limit, origin)

    @classmethod
    def _make(
        cls,
        chats: list[list[int]],
        plain: Sequence[str],
        other: Sequence[str],
        own_texts: list[str],
        tokenizer: Any,
        tokens: int,
        limit: int,
        origin: Origin,
    ) -> Sample:
        half = token_sequences.take(chats, tokens // 2)
        rest = tokens - sum(map(len, half))
        compared = half + token_sequences.take(token_sequences.plain_sequences(plain, tokenizer, limit), rest)
        elsewhere = token_sequences.take(token_sequences.plain_sequences(other, tokenizer, limit), tokens)
        if sum(map(len, compared)) < MIN_TOKENS:  # a handful of rows proves nothing
            compared, origin = compared + elsewhere, "filled"
        return cls(compared, elsewhere, own_texts, origin)


def own_texts(rows: Iterable[list[int]], tokenizer: Any) -> list[str]:
    """The first rows as texts, without their special tokens and with them: what is tokenized on both sides."""
    first = list(itertools.islice(rows, OWN_TEXTS))
    return [*(tokenizer.decode(row, skip_special_tokens=True) for row in first), *map(tokenizer.decode, first)]


def sequence_limit(vocab_size: int, context_tokens: int) -> int:
    """Return the maximum tokens per sequence, limited by the context and by the memory of the logits."""
    return max(2, min(_SEQUENCE_TOKENS, context_tokens, _LOGITS // vocab_size))
