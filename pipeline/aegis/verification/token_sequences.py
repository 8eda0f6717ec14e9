"""Makes token sequences from texts, renders chats in limited time, and lists strings on which tokenizers differ."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from aegis.data.chat import Encoder
from aegis.data.packing import Windows
from aegis.errors import DataError, UsageError
from aegis.llama_cpp import Message, Raised, chat_texts

HARD_STRINGS = (
    "こんにちは。", "吾輩は猫である。名前はまだ無い。", "東京都千代田区１丁目２番３号", "ｶﾀｶﾅとカタカナ",
    "　全角の空白", "全角　の　空白", " 先頭の空白", "  二つの空白", "末尾の空白 ", "改行\nを含む",
    "\n先頭の改行", "二つの\n\n改行", "タブ\tを含む", "🦉", "👩‍👩‍👧‍👦の家族", "絵文字😀と文", "𠮷野家", "髙橋﨑",
    "がぎぐげご", "か\u3099", "「引用」と（括弧）", "…——〜", "100円", "3.14159", "2026年11月24日",
    "Hello, world!", " leading space", "trailing space ", "tab\tand\nnewline", "MixedCASE and UPPER",
    "don't can't won't", "def f(x):\n    return x ** 2\n", "https://example.org/path?q=1&r=2",
    "a@b.example", '{"key": [1, 2, 3]}', "Ünïcödé çàéß", "Привет, мир", "안녕하세요", "你好，世界", "مرحبا",
    "🇯🇵🇺🇸", "\u200bzero width", "café", "ﬁ ligature", "x" * 60, "あ" * 60, "",
)  # fmt: skip

CONVERSATIONS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "こんにちは"},),
    ({"role": "user", "content": "  空白で始まる"},),
    ({"role": "user", "content": "\n改行で始まる"},),
    (
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "続けて"},
    ),
    (
        {"role": "user", "content": "一つ目"},
        {"role": "assistant", "content": "はい。\n二行目。"},
        {"role": "user", "content": "二つ目　😀"},
        {"role": "assistant", "content": "はい、　全角の空白です。"},
        {"role": "user", "content": "三つ目"},
    ),
)
# After a tag that strips the white space behind it, as Phi-3's role tags do, transformers strips a full-width space
# too, and llama.cpp only ASCII. No conversion can mend this difference: it is reported and not counted.
FULL_WIDTH_START: tuple[Message, ...] = ({"role": "user", "content": "　全角で始まる"},)
WITH_SYSTEM: tuple[Message, ...] = (
    {"role": "system", "content": "短く答えてください。"},
    {"role": "user", "content": "春は？"},
)


def first_pieces(windows: Windows, tokens: int) -> list[list[int]]:
    """Return the first documents of the windows, `tokens` tokens in all; the others are not read."""
    return take((piece.tolist() for piece in windows.pieces()), tokens)


def take(sequences: Iterable[Sequence[int]], tokens: int) -> list[list[int]]:
    """Return the first sequences with at least two tokens, `tokens` tokens in all; the last is cut to fit."""
    taken: list[list[int]] = []
    left = tokens
    for sequence in sequences:
        if left < 2:
            break
        if len(sequence) >= 2:
            taken.append(list(sequence[:left]))
            left -= len(taken[-1])
    return taken


def plain_sequences(texts: Iterable[str], tokenizer: Any, max_length: int) -> Iterable[list[int]]:
    """Yield the token ids of plain texts, with the tokenizer's begin token, in sequences of at most `max_length`."""
    for ids in Encoder(tokenizer).token_ids(list(texts)):
        for start in range(0, len(ids), max_length):
            yield ids[start : start + max_length]


def read_text(path: Path, tokenizer: Any, min_tokens: int) -> list[str]:
    """Read the paragraphs of a UTF-8 file.

    Raises:
        UsageError: there is no such file.
        DataError: it is not UTF-8, or shorter than `min_tokens`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError("text.none", path=path, error=str(error)) from None
    except UnicodeDecodeError:
        raise DataError("text.not_utf8", path=path) from None
    paragraphs = [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]
    count = sum(map(len, Encoder(tokenizer).token_ids(paragraphs)))
    if count < min_tokens:
        raise DataError("text.too_short", path=path, count=count, min_tokens=min_tokens)
    return paragraphs


def rendered(texts: Sequence[str], tokenizer: Any) -> list[str]:
    """Render texts as questions and answers with the tokenizer's template; none without one, or if it refuses them."""
    if not tokenizer.chat_template:
        return []
    chats = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in itertools.pairwise([*texts, *texts[:1]])
    ]
    found = chat_texts(tokenizer, chats, prompt=False)
    written = [text for text in found if not isinstance(text, Raised)]
    return written if len(written) == len(chats) else []


def conversations_for(tokenizer: Any) -> list[tuple[Message, ...]]:
    """Return the chats that the tokenizer's template accepts; none without a template."""
    if not tokenizer.chat_template:
        return []
    chats = (*CONVERSATIONS, WITH_SYSTEM)
    found = chat_texts(tokenizer, chats, prompt=True)
    return [chat for chat, text in zip(chats, found, strict=True) if not isinstance(text, Raised)]
