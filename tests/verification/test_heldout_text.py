"""Tests of the texts of the comparison: half chats and half plain text, of a length that fits context and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from aegis.model.base import load_tokenizer
from aegis.verification.heldout_text import MIN_TOKENS, Sample, sequence_limit

TEXTS = [f"{number}番目のりんごは赤い果物です。" for number in range(30)]


@pytest.fixture(scope="module")
def tokenizer(quick_base: Path) -> Any:
    return load_tokenizer(quick_base)


def test_a_text_is_compared_plain_and_as_chats(tokenizer: Any) -> None:
    sample = Sample.of_text(TEXTS, tokenizer, 200, 48)
    assert sum(map(len, sample.compared)) == 200
    assert max(map(len, sample.compared)) <= 48
    tag = tokenizer.convert_tokens_to_ids("<|user|>")
    chats = [row for row in sample.compared if tag in row]
    assert sum(map(len, chats)) == 100
    assert sample.own_texts[:30] == TEXTS
    assert all("<|assistant|>" in chat for chat in sample.own_texts[30:])
    assert len(sample.own_texts) == 60


def test_chats_are_compared_as_they_were_trained_on(tokenizer: Any) -> None:
    rows = [tokenizer(f"<|user|>\n{text}<|end|>\n<|assistant|>\nはい。<|end|>\n").input_ids for text in TEXTS]
    sample = Sample.of_chats(rows, tokenizer, 200, 64)
    assert sample.compared[0] == rows[0][:64]
    assert sum(map(len, sample.compared)) == 200
    assert sample.other
    assert not any("りんごは赤い果物" in tokenizer.decode(row) for row in sample.other)


def test_a_handful_of_rows_is_filled_up(tokenizer: Any) -> None:
    """Two short rows prove nothing."""
    rows = [tokenizer("はい。").input_ids, [1]]
    assert sum(map(len, Sample.of_chats(rows, tokenizer, 200, 64).compared)) >= MIN_TOKENS


@pytest.mark.parametrize(
    ("vocab_size", "context", "limit"), [(32_064, 4096, 512), (32_064, 256, 256), (262_144, 4096, 128)]
)
def test_the_longest_sequence_follows_context_and_vocabulary(vocab_size: int, context: int, limit: int) -> None:
    """Its logits stay under 134 MB."""
    assert sequence_limit(vocab_size, context) == limit
    assert limit * vocab_size * 4 <= 1 << 27
